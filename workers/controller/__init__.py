"""The side of an edit worker that drives a group of ranks."""
