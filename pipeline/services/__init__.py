"""The verbs of Corrigenda: one use case a file, which speaks to the outside world through `ports` and `registry_ports`.

Each module exports one service, which `pipeline.bootstrap` puts together with its adapters.
"""
