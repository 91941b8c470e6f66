"""The embedded stack: Kafka protocol, PostgreSQL, Redis and MLflow from wheels, in one folder, as root or not.

It exports `LocalStack` and the records that it takes and gives:

    stack = LocalStack(Path(".corrigenda"))
    endpoints = stack.start()
    stack.spawn("intake", [sys.executable, "-m", "pipeline.entrypoints.consumer"])
    stack.stop()
"""

from infra.local.ephemeral import ephemeral_stack
from infra.local.errors import LocalStackError
from infra.local.records import ALL, Endpoints, ProcessState, ProcessStatus, Service
from infra.local.stack import LocalStack
from infra.local.supervisor import Supervisor

__all__ = [
    "ALL",
    "Endpoints",
    "LocalStack",
    "LocalStackError",
    "ProcessState",
    "ProcessStatus",
    "Service",
    "Supervisor",
    "ephemeral_stack",
]
