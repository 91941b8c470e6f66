"""Files of edits and probes in every known format, and files that are replaced as a whole.

`datasets` reads and writes edits, suites and texts; `atomic_files` replaces files and folders.
"""
