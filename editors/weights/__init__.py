"""Low-rank weight deltas: their files, loading them onto a base, and serving the result.

`deltas` has `WeightDelta` and the weights they are added to; `loading` loads a base or a snapshot, `serving` answers.
"""
