"""Least squares with memory: what the rows of all active edits together make of the weights.

`Ledger` keeps the rows and their sums, `Prior` says what has to stay, `linear` has the solves, and `NaturalGradient`
the direction that changes least elsewhere.
"""
