"""Low-rank weight deltas: their files, loading them onto a base, serving the result."""
