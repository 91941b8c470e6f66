"""One outside system a file. Foreign exceptions end here."""
