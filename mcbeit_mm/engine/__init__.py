"""Training loops, hooks, checkpoints and resume."""
