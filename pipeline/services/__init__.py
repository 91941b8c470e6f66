"""The verbs of Corrigenda: one use case a file, speaking only to the ports."""
