#!/usr/bin/env bash
# Train under Slurm, one task per GPU.
#   GPUS=16 GPUS_PER_NODE=8 bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of tools/train.py]
# CPUS_PER_TASK and SRUN_ARGS are passed to srun.
#
# A run interrupted by SIGTERM, SIGINT or SIGUSR1 saves, exits with status 75 and continues with --resume:
# - a batch job (sbatch --requeue --open-mode=append --signal=USR1@300, where 300 s must suffice for an iteration, a
#   validation and a checkpoint) is requeued, unless it was cancelled;
# - otherwise srun is repeated, unless this script itself got the signal.
# After MAX_RESTARTS restarts (default 50: twelve days in slices of six hours) it exits with status 75.
set -euo pipefail
if [ $# -lt 3 ]; then
  echo "usage: [GPUS=16] bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of tools/train.py]" >&2
  exit 2
fi
source "$(dirname "$0")/pass_signals.sh"
partition=$1 job=$2 config=$3
gpus=${GPUS:-16}
gpus_per_node=${GPUS_PER_NODE:-8}
if [ "$gpus" -lt "$gpus_per_node" ]; then gpus_per_node=$gpus; fi
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
restarts=${SLURM_RESTART_COUNT:-0} # Slurm's own count of a requeued job
signalled=

pass_on() {
  signalled=1
  # srun forwards TERM and USR1 to its tasks, but answers a single INT with a status report.
  if [ "$1" = INT ]; then set -- TERM "$2"; fi
  kill -"$1" "$2"
}

train() {
  # SRUN_ARGS is meant to split into words.
  # shellcheck disable=SC2086
  run_passing_signals pass_on \
    srun -p "$partition" --job-name="$job" \
    --gres=gpu:"$gpus_per_node" --ntasks="$gpus" --ntasks-per-node="$gpus_per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-10}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    python -u "$root/tools/train.py" "$config" --launcher slurm "$@"
}

while true; do
  arguments=("${@:4}")
  # The last --resume counts, so restarts use the newest checkpoint even if the first start named one.
  if [ "$restarts" -gt 0 ]; then arguments+=(--resume); fi
  status=0
  train ${arguments[@]+"${arguments[@]}"} || status=$?
  if [ "$status" != 75 ]; then exit "$status"; fi
  if [ "$restarts" -ge "${MAX_RESTARTS:-50}" ]; then
    echo "interrupted and saved after $restarts restarts (MAX_RESTARTS): continue with --resume" >&2
    exit 75
  fi
  if [ -n "${SLURM_JOB_ID:-}" ] && command -v scontrol >/dev/null; then
    if [[ "$(scontrol show job "$SLURM_JOB_ID")" == *JobState=RUNNING* ]]; then
      echo "interrupted and saved: requeueing" >&2
      scontrol requeue "$SLURM_JOB_ID"
    fi
    exit 75
  fi
  if [ -n "$signalled" ]; then
    echo "interrupted and saved: continue with --resume" >&2
    exit 75
  fi
  restarts=$((restarts + 1))
  echo "interrupted and saved: repeating srun with --resume" >&2
done
