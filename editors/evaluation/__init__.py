"""The program that measures editors on streams of edits: `python -m editors.evaluation`."""
