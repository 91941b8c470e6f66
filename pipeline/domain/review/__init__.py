"""Who decides about snapshots, and by which policies. It exports nothing; import its modules."""
