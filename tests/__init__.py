"""The tests: unit, contract, integration, faults, e2e and gpu."""
