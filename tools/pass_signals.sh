# Sourced by the launch scripts: run a command that gets this shell's signals, exactly once each.

# Run a command with a function that is told of each signal (its name, the command's process) and
# return the command's status.
run_passing_signals() {
  local on_signal=$1 name child
  shift
  set -m # a process group of its own, which Ctrl-C does not reach on another way too
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
