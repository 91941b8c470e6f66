"""MEND's trained transform: the network, the moments its inputs are normalised by, and the files that hold both.

`MendTransform` is the network, `TrainedEditor` reads and writes an editor's folder, and `shipped_editor` finds the one
that comes with a base.
"""
