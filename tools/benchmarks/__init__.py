"""The topics of `tools/benchmark.py`, a module each, with how they are measured and printed."""
