"""What is asked of a config before anything is built."""
