"""The program that each rank runs: `python -m workers.rank`."""
