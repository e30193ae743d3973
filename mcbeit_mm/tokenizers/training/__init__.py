"""Tokenizer training."""
