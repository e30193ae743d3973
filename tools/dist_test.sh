#!/usr/bin/env bash
# Test a checkpoint on several GPUs (or CPU processes).
#   bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of tools/test.py]
set -euo pipefail
if [ $# -lt 3 ]; then
  echo "usage: bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of tools/test.py]" >&2
  exit 2
fi
source "$(dirname "$0")/launch_distributed.sh"
launch_distributed "$3" "$(dirname "$0")/test.py" "$1" "$2" "${@:4}"
