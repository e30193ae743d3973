"""Run configs x seeds and tabulate the results."""
