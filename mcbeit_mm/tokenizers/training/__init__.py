"""Train your own tokenizer."""
