"""Folding: the active facts of a lineage are learnt into a copy of its pristine base, which is then a base itself."""
