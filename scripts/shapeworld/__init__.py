"""A tiny world of coloured shapes: its pictures, captions and edits, its scorer, and the models trained on it."""
