"""Alert rules and the dashboard ask for metrics that the code has, by labels that those have.

Every query is parsed as Prometheus does. promtool, where it is installed, checks the rules and runs their own tests.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import promql_parser as promql
import pytest
import yaml
from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from pipeline.telemetry import metrics
from tests.support.paths import ROOT
from workers.serving.metrics import ServingMetrics

PROMETHEUS, GRAFANA = ROOT / "infra" / "prometheus", ROOT / "infra" / "grafana"
OF_A_TARGET = {"job", "instance"}
"""Labels that Prometheus adds to everything it scrapes."""
EXACT = {"CorrigendaLineageHeld"}
"""Rules whose test has what fires and what does not at one time: all that fires is compared."""
NOT_OURS = {"up": set[str](), "process_resident_memory_bytes": set(), "process_cpu_seconds_total": set()}
"""What Prometheus and its client library tell of a process."""


def declared() -> dict[str, Counter | Gauge | Histogram]:
    return {
        value._name: value
        for value in vars(metrics).values()
        if isinstance(value, Counter | Gauge | Histogram) and value in REGISTRY._collector_to_names
    }


def series() -> dict[str, set[str]]:
    """Every series that the code may expose, and its labels."""
    found = {metrics.HEARTBEAT_AGE: {"loop"}, **NOT_OURS, **served()}
    for metric in declared().values():
        found |= series_of(metric)
    return found


def series_of(metric: Counter | Gauge | Histogram) -> dict[str, set[str]]:
    name, labels = metric._name, set(metric._labelnames)
    if isinstance(metric, Counter):
        return {f"{name}_total": labels}
    if isinstance(metric, Histogram):
        return {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
    return {name: labels}


def served() -> dict[str, set[str]]:
    """Every series of a process that serves models; they are in a registry of their own."""
    thread = SimpleNamespace(num_waiting=0, num_active=0, seconds_without_progress=lambda: 0.0)
    made = ServingMetrics(cast(Any, thread), lambda: ())
    found: dict[str, set[str]] = {}
    for collector in made.registry._collector_to_names:
        if isinstance(collector, Counter | Gauge | Histogram):
            found |= series_of(collector)
        else:
            found |= {family.name: set(family._labelnames) for family in collector.collect()}  # type: ignore[attr-defined]
    return found


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    board = json.loads((GRAFANA / "dashboards" / "corrigenda.json").read_text())
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries() -> list[tuple[str, str]]:
    """(where it stands, query), as Grafana sends it."""
    asked = [(rule["alert"], rule["expr"]) for rule in rules()]
    asked += [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]
    return [(where, query.replace("$lineage", ".*")) for where, query in asked]


def nodes(expression: Any) -> Iterator[Any]:
    """An expression and everything in it."""
    yield expression
    for name in ("expr", "lhs", "rhs", "vector_selector", "args"):
        below = getattr(expression, name, None)
        for one in below if isinstance(below, list | tuple) else [below]:
            if one is not None:
                yield from nodes(one)


@pytest.mark.parametrize(("where", "query"), queries(), ids=lambda value: value[:40])
def test_a_query_asks_for_what_there_is(where: str, query: str) -> None:
    known, used, selectors = series(), set[str](), list[str]()
    for node in nodes(promql.parse(query)):
        if isinstance(node, promql.VectorSelector):
            assert node.name in known, f"{where}: no process exposes {node.name}"
            asked = {matcher.name for matcher in node.matchers.matchers}
            assert asked <= known[node.name] | OF_A_TARGET, f"{where}: {node.name} has no label {asked}"
            used |= known[node.name]
            selectors.append(node.name)
    for node in nodes(promql.parse(query)):
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            assert set(node.modifier.labels) <= used | OF_A_TARGET, f"{where}: nothing in it has {node.modifier.labels}"
    assert selectors, where


def test_the_walk_finds_every_selector() -> None:
    query = "sum by (a) (rate(x_total{b='c'}[5m])) / on () (max(y) > 0) unless histogram_quantile(0.9, z)"
    found = {node.name for node in nodes(promql.parse(query)) if isinstance(node, promql.VectorSelector)}
    assert found == {"x_total", "y", "z"}


def test_everything_that_is_counted_is_shown_somewhere() -> None:
    text = " ".join(query for _, query in queries())
    assert [name for name in declared() if not re.search(rf"\b{name}(_total|_bucket|_sum|_count)?\b", text)] == []


def test_names_follow_the_conventions() -> None:
    for name, metric in declared().items():
        assert name.startswith("corrigenda_")
        assert re.fullmatch(r"[A-Z1].*\.", metric._documentation), name
        if isinstance(metric, Histogram) and name != "corrigenda_batch_edits":
            assert name.endswith("_seconds"), name


def test_every_alert_says_what_is_wrong_and_what_follows() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("info", "warning", "critical"), rule["alert"]
        assert set(rule["annotations"]) == {"summary", "description"}, rule["alert"]
        shown = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        labels = set().union(*series().values()) | OF_A_TARGET
        assert shown <= labels, rule["alert"]


def test_the_document_says_what_to_do_about_every_alert() -> None:
    text = (ROOT / "OPERATING.md").read_text()
    assert [rule["alert"] for rule in rules() if f"`{rule['alert']}`" not in text] == []


def test_every_scraped_job_is_one_that_the_rules_know() -> None:
    jobs = {job["job_name"] for job in yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]}
    [down] = [rule["expr"] for rule in rules() if rule["alert"] == "CorrigendaProcessDown"]
    assert set(re.findall(r"[a-z-]+", down.split('"')[1])) == jobs


def test_the_dashboard_is_provisioned_with_the_data_source_that_it_names() -> None:
    [source] = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    used = {target["datasource"]["uid"] for panel in panels() for target in panel["targets"]}
    assert used == {source["uid"]}
    numbers = [panel["id"] for panel in panels()]
    assert len(numbers) == len(set(numbers))
    assert all(panel["title"] and panel["description"].endswith(".") for panel in panels())


def test_every_rule_has_a_test_that_it_is_silent_and_one_that_it_fires() -> None:
    asked = [
        one
        for group in yaml.safe_load((PROMETHEUS / "alerts.test.yml").read_text())["tests"]
        for one in group["alert_rule_test"]
    ]
    fires, is_silent = (
        {one["alertname"] for one in asked if bool(one["exp_alerts"]) == fire} for fire in (True, False)
    )
    names = {rule["alert"] for rule in rules()}
    assert fires == names
    assert is_silent >= names - EXACT, "a rule that always fires would pass"


def test_promtool_finds_nothing_wrong_and_the_tests_of_the_rules_pass() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed; what it would find in a query, the other tests find")
    for words in (("check", "config", "prometheus.yml"), ("test", "rules", "alerts.test.yml")):
        done = subprocess.run([promtool, *words], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
