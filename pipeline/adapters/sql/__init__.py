"""PostgreSQL, the only source of truth: one store for each subject."""
