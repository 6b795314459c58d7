"""The user's rows and labels, as they come, in one normal form."""
