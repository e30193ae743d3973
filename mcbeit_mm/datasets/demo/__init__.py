"""The embedded data set: digits on photographs."""
