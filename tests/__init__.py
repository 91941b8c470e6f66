"""Tests by how much of the world they need: unit, contract, integration, faults, e2e, gpu.

`support` holds what they share, `benchmarks` the programs that measure.
"""
