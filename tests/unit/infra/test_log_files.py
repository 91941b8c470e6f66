"""Logs of the embedded stack stay within a bound, while whoever writes them goes on."""

from datetime import datetime
from pathlib import Path

import pytest

from infra.local.log_files import bound, timed, written_at


def test_a_long_log_is_put_aside_and_its_writer_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "intake.log"
    (tmp_path / "short.log").write_text("x")
    with log.open("ab") as writer:
        for text in (b"first ", b"second ", b"third ", b"fourth "):
            writer.write(text * 100)
            writer.flush()
            assert bound(tmp_path, max_bytes=100, num_kept=2) == ["intake"]
            assert log.stat().st_size == 0
        writer.write(b"fifth")
    log.chmod(0o600)

    assert bound(tmp_path, max_bytes=100, num_kept=2) == []
    assert log.read_bytes() == b"fifth"
    assert (tmp_path / "intake.log.1").read_bytes() == b"fourth " * 100
    assert (tmp_path / "intake.log.2").read_bytes() == b"third " * 100
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "intake.log",
        "intake.log.1",
        "intake.log.2",
        "short.log",
    ]


@pytest.mark.parametrize(
    ("line", "at"),
    [
        (
            '{"event": "x", "timestamp": "2026-11-28T12:00:00.250000Z", "process": "web"}',
            "2026-11-28T12:00:00.25+00:00",
        ),
        ("2026-11-28 12:00:00.250 UTC [23] LOG:  ready", "2026-11-28T12:00:00.25+00:00"),
        ("2026/11/28 12:00:00 INFO mlflow: up", "2026-11-28T12:00:00"),
        ("2026-11-28 12:00:00,250 INFO rank 0 ready", "2026-11-28T12:00:00.25"),
        ("23660:M 28 Nov 2026 12:00:00.250 * Ready", "2026-11-28T12:00:00.25"),
        ("ready in 8ms", None),
        ("2026-13-45 99:00:00 nonsense", None),
    ],
)
def test_a_line_says_when_it_was_written_in_any_of_the_forms_there_are(line: str, at: str | None) -> None:
    assert written_at(line) == (datetime.fromisoformat(at).timestamp() if at else None)


def test_lines_without_a_time_stay_where_they_stand() -> None:
    lines = ["begins", "2026-11-28T12:00:05Z a", "Traceback", "2026-11-28T12:00:03Z late", "2026-11-28T12:00:09Z b"]
    at = datetime.fromisoformat("2026-11-28T12:00:00+00:00").timestamp()
    assert [stamp - at for stamp, _ in timed(lines, otherwise=0.0)] == [5, 5, 5, 5, 9]
    assert [line for _, line in timed(lines, otherwise=0.0)] == lines
    assert list(timed(["no", "time"], otherwise=7.0)) == [(7.0, "no"), (7.0, "time")]
