"""The mathematics of merging: pure functions on tensors, and what each method declares about itself."""
