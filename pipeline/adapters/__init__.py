"""What speaks to one outside system each: PostgreSQL, Kafka, MLflow, Celery, and files.

A package or module exports its stores and clients; foreign exceptions leave it as those of `pipeline.domain.errors`.
"""
