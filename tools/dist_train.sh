#!/usr/bin/env bash
# Train on several GPUs (or CPU processes) of this machine, or of NNODES machines.
#   bash tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
# Several machines: set NNODES, NODE_RANK, MASTER_ADDR and PORT on each. One machine: a free port is chosen.
set -euo pipefail
if [ $# -lt 2 ]; then
  echo "usage: bash tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]" >&2
  exit 2
fi
source "$(dirname "$0")/launch_distributed.sh"
launch_distributed "$2" "$(dirname "$0")/train.py" "$1" "${@:3}"
