"""Links to MLflow's pages, as browsers read them."""

from __future__ import annotations

from pipeline.services.registry.links import charts_link, model_link, review_link, run_link, version_link

PAGES = "http://127.0.0.1:5000/"


def test_a_versions_link_opens_on_its_page_and_not_in_the_mode_without_models() -> None:
    wanted = "http://127.0.0.1:5000/#/models/facts/versions/2?workflowType=machine_learning"
    assert version_link(PAGES, "facts", "2") == wanted
    assert model_link(PAGES, "facts") == "http://127.0.0.1:5000/#/models/facts?workflowType=machine_learning"


def test_a_name_cannot_lead_elsewhere() -> None:
    assert "/models/a%23b%26c%C3%A9/versions/" in version_link(PAGES, "a#b&cé", "1")


def test_runs_have_tabs_and_are_compared_in_charts() -> None:
    mode = "workflowType=machine_learning"
    artifacts = f"http://127.0.0.1:5000/#/experiments/7/runs/abc/artifacts/plots?{mode}"
    assert run_link(PAGES, "7", "abc", tab="artifacts/plots") == artifacts
    assert charts_link(PAGES, "7") == f"http://127.0.0.1:5000/#/experiments/7/runs?{mode}&compareRunsMode=CHART"


def test_our_own_page_of_a_snapshot_is_linked_by_its_place() -> None:
    assert (
        review_link("https://corrigenda.example/", "a b", 3)
        == "https://corrigenda.example/review/lineages/a%20b/snapshots/3"
    )
