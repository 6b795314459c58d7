"""What gives scores."""
