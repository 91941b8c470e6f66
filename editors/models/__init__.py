"""What a model shows to edits: one interface for every family of models, tokens, hooks, generation, and ranks.

`families` is the way in (`editable`, `EditableModel`); `hooks` reads and adds at edited layers, `digest` names a base.
"""
