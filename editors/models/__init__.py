"""What a model shows to edits: families, tokens, hooks on inner parameters, generation, and how ranks talk."""
