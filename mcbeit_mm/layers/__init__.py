"""What the method's files are made of."""
