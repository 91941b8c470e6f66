"""The program that measures editors on streams of edits: `python -m editors.evaluation`.

`Evaluation` runs an editor through a `Protocol`; `metrics` defines every figure that comes out.
"""
