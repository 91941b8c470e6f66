"""The side of an edit worker that drives a group of ranks; it never imports torch.

`group.RankGroup` is what services use; `one_shot` is a program that holds one snapshot to ask it or to export it.
"""
