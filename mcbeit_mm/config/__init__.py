"""Reading, checking and comparing configs, before anything is built."""
