"""Configs x seeds -> runs -> a table."""
