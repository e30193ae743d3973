"""Images -> samples."""
