"""What a base needs of memory, planned before it is loaded."""
