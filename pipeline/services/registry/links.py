"""Addresses of MLflow's pages, for people: each opens on the page itself, with the model registry in the menu.

MLflow starts in its GenAI mode, which has no models; `workflowType` chooses the other one. It counts only behind the
`#`, where MLflow's pages read it.
"""

from __future__ import annotations

from urllib.parse import quote

MODE = "workflowType=machine_learning"


def version_link(pages: str, lineage: str, version: str) -> str:
    """Return the address of a model version's page.

    Args:
        pages: address of the MLflow server as browsers reach it (`Settings.mlflow_pages`).
        lineage: name of the lineage, which is that of the registered model.
        version: the model version.
    """
    return f"{pages.rstrip('/')}/#/models/{quote(lineage, safe='')}/versions/{quote(version, safe='')}?{MODE}"


def model_link(pages: str, lineage: str) -> str:
    """Return the address of the page that lists a lineage's versions."""
    return f"{pages.rstrip('/')}/#/models/{quote(lineage, safe='')}?{MODE}"


def charts_link(pages: str, experiment_id: str) -> str:
    """Return the address of the charts that compare a lineage's snapshots, which are the runs of its experiment."""
    return f"{pages.rstrip('/')}/#/experiments/{experiment_id}/runs?{MODE}&compareRunsMode=CHART"


def run_link(pages: str, experiment_id: str, run_id: str, *, tab: str = "") -> str:
    """Return the address of a run's page, or of one of its tabs, such as `artifacts/plots`."""
    return f"{pages.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}{f'/{tab}' if tab else ''}?{MODE}"


def review_link(pages: str, lineage: str, seq: int) -> str:
    """Return the address of a snapshot on Corrigenda's own pages, which the web process at `pages` serves."""
    return f"{pages.rstrip('/')}/review/lineages/{quote(lineage, safe='')}/snapshots/{seq}"
