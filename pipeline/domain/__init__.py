"""The nouns of Corrigenda: frozen records and pure functions. Nothing here talks to a service."""
