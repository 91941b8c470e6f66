"""The nouns of Corrigenda: frozen records and pure functions that every other package builds on.

Each module exports the records of its subject; none of them talks to a service.
"""
