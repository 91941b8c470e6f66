"""Edit files of every known format, our own included, and files that are replaced as a whole."""
