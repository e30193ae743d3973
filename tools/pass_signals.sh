# Sourced by the launch scripts: runs a command and forwards each signal to it exactly once.

# Call FUNCTION NAME PID for each signal while COMMAND runs; return the status of COMMAND.
run_passing_signals() {
  local on_signal=$1 name child
  shift
  set -m # a process group of its own, so that Ctrl-C does not reach it directly as well
  "$@" &
  child=$!
  set +m
  for name in TERM INT USR1; do
    # shellcheck disable=SC2064
    trap "$on_signal $name $child" "$name"
  done
  while kill -0 "$child" 2>/dev/null; do
    wait "$child" || true # a trap interrupts it
  done
  trap - TERM INT USR1
  wait "$child"
}
