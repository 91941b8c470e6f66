"""MEND's transform, its running moments, and the checkpoint that holds both."""
