"""Pictures, curves and the HTML report."""
