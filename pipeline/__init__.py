"""The control plane: it decides and records, and never imports torch.

Others import `domain`, the records and pure functions; processes start from `entrypoints`.
"""
