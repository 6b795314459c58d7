"""A tiny world of coloured shapes: pictures, captions, edits, a scorer, and models trained on it."""
