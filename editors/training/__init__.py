"""The program that trains an editor: `python -m editors.training`."""
