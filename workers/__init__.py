"""Processes with accelerators: compose the editors with the pipeline."""
