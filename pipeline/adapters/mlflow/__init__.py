"""MLflow: model versions with their files, aliases, and requests for a decision.

`registry.MlflowRegistry` is the face of the package; MLflow itself is imported at its first call.
"""
