# Sourced by dist_train.sh and dist_test.sh: runs torchrun with a suitable rendezvous.
# Signals go to torchrun's processes, which save and exit with 75 (see InterruptHook); torchrun itself
# would kill them after 30 s. The status is 75 if they were interrupted; torchrun returns 1 for any failure.
source "$(dirname "${BASH_SOURCE[0]}")/pass_signals.sh"

launch_distributed() {
  local processes=$1
  shift
  case "$processes" in
    '' | *[!0-9]* | 0)
      echo "error: the number of GPUs must be a positive integer, got '$processes'" >&2
      exit 2
      ;;
  esac
  if [ ! -f "$2" ]; then # torchrun would bury this message in its report of failed processes
    echo "error: no config file $2" >&2
    exit 2
  fi
  local rendezvous
  if [ "${NNODES:-1}" -gt 1 ]; then
    # All machines must agree on the port, so it cannot be chosen here.
    rendezvous=(--nnodes "$NNODES" --node-rank "${NODE_RANK:?set NODE_RANK on each machine}"
      --master-addr "${MASTER_ADDR:?set MASTER_ADDR to the first machine}" --master-port "${PORT:-29500}")
  elif [ -n "${PORT:-}" ]; then
    rendezvous=(--nnodes 1 --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "$PORT")
  else
    # Port 0 lets torchrun's rendezvous choose a free port, so two jobs on one machine never collide.
    rendezvous=(--nnodes 1 --rdzv-backend c10d --rdzv-endpoint localhost:0)
  fi
  # Without CUDA, several processes share the cores.
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  MCBEIT_INTERRUPTED=$(mktemp) # InterruptHook writes 75 into it
  export MCBEIT_INTERRUPTED
  export PYTHONPATH="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)${PYTHONPATH:+:$PYTHONPATH}"
  local status=0
  run_passing_signals signal_processes \
    python -m torch.distributed.run "${rendezvous[@]}" --nproc-per-node "$processes" \
    "$@" --launcher pytorch || status=$?
  if [ "$status" != 0 ] && [ -s "$MCBEIT_INTERRUPTED" ]; then
    status=$(cat "$MCBEIT_INTERRUPTED")
  fi
  rm -f "$MCBEIT_INTERRUPTED"
  return "$status"
}

signal_processes() {
  # No processes yet, or no pkill: signal torchrun, which passes it on.
  pkill -"$1" -P "$2" || kill -"$1" "$2"
}
