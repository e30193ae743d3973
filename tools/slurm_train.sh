#!/usr/bin/env bash
# Train under Slurm, one task per GPU.
#   GPUS=16 GPUS_PER_NODE=8 bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of tools/train.py]
# CPUS_PER_TASK and SRUN_ARGS are passed on.
set -euo pipefail
if [ $# -lt 3 ]; then
  echo "usage: [GPUS=16] bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of tools/train.py]" >&2
  exit 2
fi
partition=$1 job=$2 config=$3
gpus=${GPUS:-16}
gpus_per_node=${GPUS_PER_NODE:-8}
if [ "$gpus" -lt "$gpus_per_node" ]; then gpus_per_node=$gpus; fi
root=$(cd "$(dirname "$0")/.." && pwd)
# SRUN_ARGS is meant to split into words.
# shellcheck disable=SC2086
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" srun -p "$partition" --job-name="$job" \
  --gres=gpu:"$gpus_per_node" --ntasks="$gpus" --ntasks-per-node="$gpus_per_node" \
  --cpus-per-task="${CPUS_PER_TASK:-10}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
  python -u "$root/tools/train.py" "$config" --launcher slurm "${@:4}"
