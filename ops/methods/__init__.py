"""A file each method, or close family of methods."""
