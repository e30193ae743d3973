"""Checks of a config, one subject per file; `preflight` runs them all."""
