"""Quality of frozen features."""
