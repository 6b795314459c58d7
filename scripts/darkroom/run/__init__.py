"""One run: its plans, digests, paths, and what its jobs need."""
