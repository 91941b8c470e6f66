"""The program that measures a base once before a lineage is made: `python -m editors.prepare`."""
