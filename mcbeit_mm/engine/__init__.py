"""Training: loops, hooks, resuming."""
