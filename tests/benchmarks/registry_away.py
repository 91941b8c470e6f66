"""What waits while MLflow is stopped: `python -m tests.benchmarks.registry_away [--seconds 300]`.

The embedded stack runs as `corrigenda up` starts it, ten corrections come in a second, and a snapshot is committed
every two seconds. MLflow is stopped with SIGSTOP: it takes connections and never answers. Printed are the seconds from
owing a doorbell or a result to having it done, for those owed meanwhile; and afterwards how many snapshots have how
many model versions, and for how many edits the topic's last result is another status than the database's.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import time
from pathlib import Path

from kafka import KafkaConsumer, TopicPartition
from mlflow import MlflowClient

from pipeline.entrypoints.local_settings import mlflow_login
from tests.support.living_stack import LivingStack, living_stack
from tests.support.store_rig import LINEAGE

WAITS = """
SELECT kind, count(*) AS num, count(done_at) AS num_done,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY wait) AS p50,
       percentile_cont(0.95) WITHIN GROUP (ORDER BY wait) AS p95, max(wait) AS longest
FROM (SELECT kind, done_at, extract(epoch FROM coalesce(done_at, clock_timestamp()) - created_at)::float AS wait
      FROM outbox WHERE created_at >= %s AND created_at < %s) AS waits
GROUP BY kind ORDER BY kind
"""


def main() -> None:
    """Stop MLflow, measure, let it go on, and count what became of everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="how long MLflow is stopped")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory(prefix="corrigenda-away-") as name, living_stack(Path(name, "home")) as living:
        living.everything_goes_on()
        with living.rig() as rig:
            began = rig.now()
            living.kill("mlflow", signal.SIGSTOP)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                commit(living)
                time.sleep(2)
            ended = rig.now()
            for row in rig.query(WAITS, began, ended):
                print(row, flush=True)
            living.kill("mlflow", signal.SIGCONT)
            resumed = time.monotonic()
            while rig.query("SELECT kind FROM outbox WHERE kind = 'register' AND done_at IS NULL"):
                time.sleep(1)
            print(f"seconds until every snapshot was registered: {time.monotonic() - resumed:.0f}")
            tell_versions(living, [row["snapshot_id"] for row in rig.query("SELECT snapshot_id::text FROM snapshots")])
            tell_order(living)


def commit(living: LivingStack) -> None:
    """Commit what waits, as a worker does."""
    with living.rig() as rig:
        rig.expire_lease()
        rig.commit_batch(rig.acquire(), limit=1_000)


def tell_versions(living: LivingStack, snapshot_ids: list[str]) -> None:
    """Print how many snapshots have one model version, and how many have another number of them."""
    os.environ |= mlflow_login(living.settings)
    client = MlflowClient(living.settings.mlflow_uri)
    found = [version.tags["corrigenda.snapshot_id"] for version in client.search_model_versions(f"name = '{LINEAGE}'")]
    once = sum(found.count(snapshot_id) == 1 for snapshot_id in snapshot_ids)
    print(f"snapshots: {len(snapshot_ids)}, registered once: {once}, otherwise: {len(snapshot_ids) - once}")


def tell_order(living: LivingStack) -> None:
    """Print for how many edits the topic's last result is not what the database says."""
    time.sleep(5)
    place = TopicPartition(living.settings.results_topic, 0)
    consumer = KafkaConsumer(bootstrap_servers=living.settings.kafka_bootstrap, consumer_timeout_ms=3_000)
    consumer.assign([place])
    consumer.seek_to_beginning(place)
    last = {told["request_id"]: told["status"] for told in (json.loads(record.value) for record in consumer)}
    consumer.close()
    with living.rig() as rig:
        rows = rig.query("SELECT request_id, status FROM edit_requests WHERE status <> 'received'")
    wrong = sum(last.get(row["request_id"]) != row["status"] for row in rows)
    print(f"edits with a result: {len(rows)}, with another last result in the topic: {wrong}")


if __name__ == "__main__":
    main()
