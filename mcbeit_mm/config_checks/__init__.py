"""Checks of a config before anything is built, one question per file; `preflight` asks them all."""
