"""Targets of fixed crops, kept on disk: pretraining without the tokenizer."""
