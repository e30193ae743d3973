"""Checks of a data set, one layout per file."""
