"""One way to measure what an edit did, for gates and for evaluation alike."""
