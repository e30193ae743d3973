"""Read weights of any naming, patch grid and file format, and fit them to a model."""
