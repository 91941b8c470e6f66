"""Editors: recursive, memoryless, fine-tuning, and MEND as published."""
