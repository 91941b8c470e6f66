"""Least squares with memory: ledger, Gram matrices, preservation prior, natural gradient."""
