"""The config: read, checked, with every default."""
