"""The program that each rank of a group runs: `python -m workers.rank`.

`workers.on_ranks` uses its `sharded_model` and `rank_comm` too; everything else is the program's own.
"""
