"""Logs, checkpoints and pictures of runs -> one HTML page."""
