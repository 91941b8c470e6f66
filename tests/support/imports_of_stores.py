"""What a process imports when it opens its stores and services: a quarter of a second, for `tests.support.forked`."""

from importlib import import_module
from pkgutil import walk_packages

from pipeline import adapters, services

PACKAGES = (services, adapters)
LEFT_OUT = "pipeline.adapters.mlflow"
"""Its client is imported where it is used, and takes seconds."""

for package in PACKAGES:
    for module in walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.startswith(LEFT_OUT):
            import_module(module.name)
