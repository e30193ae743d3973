"""What `tools/benchmark.py` compares: a module per topic, and how to measure and to print."""
