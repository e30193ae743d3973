"""Targets of fixed crops, computed once and kept on disk: pretraining without the tokenizer."""
