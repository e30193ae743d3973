#!/usr/bin/env bash
# Train under Slurm, one task per GPU.
#   GPUS=16 GPUS_PER_NODE=8 bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of tools/train.py]
# CPUS_PER_TASK and SRUN_ARGS are passed on.
#
# A run that is interrupted by SIGTERM, SIGINT or SIGUSR1 saves, ends with status 75, and goes on with --resume:
# - in a batch job (sbatch --requeue --open-mode=append --signal=USR1@300: 300 s before the time limit, in which an
#   iteration and a checkpoint must fit) by putting it back into the queue, unless it was cancelled;
# - otherwise by another srun, unless it was this script that got the signal.
# At most MAX_RESTARTS times, 50: a run of twelve days in slices of six hours. Then the status is 75.
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
  # srun hands TERM and USR1 to its tasks, but answers a single INT by a report.
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
  # The last --resume counts: the newest checkpoint, whatever the first start began from.
  if [ "$restarts" -gt 0 ]; then arguments+=(--resume); fi
  status=0
  train ${arguments[@]+"${arguments[@]}"} || status=$?
  if [ "$status" != 75 ]; then exit "$status"; fi
  if [ "$restarts" -ge "${MAX_RESTARTS:-50}" ]; then
    echo "interrupted and saved; $restarts restarts are enough (MAX_RESTARTS): go on by --resume" >&2
    exit 75
  fi
  if [ -n "${SLURM_JOB_ID:-}" ] && command -v scontrol >/dev/null; then
    if [[ "$(scontrol show job "$SLURM_JOB_ID")" == *JobState=RUNNING* ]]; then
      echo "interrupted and saved: back into the queue" >&2
      scontrol requeue "$SLURM_JOB_ID"
    fi
    exit 75
  fi
  if [ -n "$signalled" ]; then
    echo "interrupted and saved: go on by --resume" >&2
    exit 75
  fi
  restarts=$((restarts + 1))
  echo "interrupted and saved: srun again, with --resume" >&2
done
