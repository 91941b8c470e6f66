"""Processes with accelerators, in which the editors meet the pipeline.

Celery runs `app` and `tasks`; `training` trains an editor on several ranks. Nothing outside imports this package.
"""
