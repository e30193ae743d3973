"""Checks of a config, one question per file; `preflight` asks them all."""
