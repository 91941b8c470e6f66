"""The demo's screen fits the terminal, and a person who waits sees that something moves."""

import io

import pytest
from rich.console import Console

from pipeline.entrypoints.demo import screen as demo_screen
from pipeline.entrypoints.demo.screen import StreamScreen

COUNTS = {
    "produced": 43,
    "received": 27,
    "duplicates": 5,
    "dead letters": 11,
    "in a batch": 24,
    "edited": 0,
    "superseded": 0,
    "rejected": 0,
    "snapshots": 0,
    "registered": 0,
}


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (60, 20)])
def test_no_heading_is_cut_and_nothing_is_lost_below_the_terminal(
    width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    console = Console(file=shown, width=width, height=height, force_terminal=True, color_system=None)
    monkeypatch.setattr(demo_screen, "out", console)
    screen = StreamScreen(started_at=0.0)
    screen.show(COUNTS)
    for number in range(20):
        screen.say(f"snapshot {number} passed its gates: " + "edit_success 1, locality 0.941, " * 4)
    screen.doing("editing a batch of 24 edits, pass 7 of at most 16, 40 s, " + "and so on " * 20)
    shown.truncate(0)
    console.print(screen._render())
    lines = shown.getvalue().strip("\x00").splitlines()

    assert len(lines) < height
    assert max(len(line) for line in lines) <= width
    text = "\n".join(lines)
    for name, count in COUNTS.items():
        assert f"{count} {name}" in text
    assert "snapshot 19" in text
    assert "editing a batch of 24 edits, pass 7 of at most" in text
