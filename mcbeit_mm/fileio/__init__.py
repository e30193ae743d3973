"""Read untrusted files safely and write files atomically."""
