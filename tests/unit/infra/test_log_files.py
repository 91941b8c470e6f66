"""Logs of the embedded stack stay within a bound, while whoever writes them goes on."""

from pathlib import Path

from infra.local.log_files import bound


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
