"""Processes: read settings, wire, run."""
