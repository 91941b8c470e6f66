"""Loading a base says what is wrong in one sentence of ours, and nothing else."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from transformers.utils import logging as of_transformers

from editors.weights.loading import load_base
from pipeline.domain.errors import Misconfigured
from tests.support.tiny_models import save_tiny_llama


class Heard(logging.Handler):
    """Remembers what transformers logs."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_a_base_that_lacks_weights_is_one_sentence_without_a_report(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path)
    heard, before = Heard(), of_transformers.get_verbosity()
    of_transformers.add_handler(heard)
    try:
        with pytest.raises(
            Misconfigured, match=r"every weight of a classifier model in .*, got none for score\.weight"
        ):
            load_base(tmp_path, task="classifier")
    finally:
        of_transformers.remove_handler(heard)
    assert heard.lines == []
    assert of_transformers.get_verbosity() == before
