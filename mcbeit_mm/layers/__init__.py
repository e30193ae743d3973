"""Building blocks of the method."""
