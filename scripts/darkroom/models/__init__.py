"""What a model is, where it lies, what its licence allows."""
