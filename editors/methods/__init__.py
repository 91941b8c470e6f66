"""Methods of editing: from a batch of edits to the change of the weights, and what all of them are made of.

`Editor`, `EditJob` and `EditResult` are what a method is; `editor_for` gives the one that settings name: recursive or
memoryless. `FineTuningEditor` and `MendSumEditor` are there to be compared with.
"""
