"""Layouts of data sets, verified; one module per layout."""
