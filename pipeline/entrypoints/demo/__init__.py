"""What `corrigenda demo` runs, from a topic to an approved model and back."""
