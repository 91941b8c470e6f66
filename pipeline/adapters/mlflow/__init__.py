"""The MLflow registry: model versions, aliases, and the folder that becomes a version."""
