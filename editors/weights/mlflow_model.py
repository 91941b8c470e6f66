"""The script that MLflow keeps as a model version's code and runs to load it. Knows nothing but how to start.

MLflow runs it once when a version is logged, in a process that has no torch: everything heavy is imported in
`load_context`, from the archive of `editors` and `pipeline.domain` that travels with the version.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext


class EditedModel(PythonModel):  # type: ignore[misc]
    """Answers stems with greedy continuations of an edited model, or claims with its labels.

    Parameters of `predict`: `max_new_tokens` (24), and `chat` (false) to ask in the model's chat template. Load with
    `model_config={"base_ref": FOLDER, "device": "cuda"}` where the base lies elsewhere or a GPU is at hand.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Build the model; refuses with one sentence if any digest differs."""
        sys.path.insert(0, context.artifacts["code"])
        from editors.weights.serving import ServedModel

        config = context.model_config or {}
        self._served = ServedModel.load(
            Path(context.artifacts["snapshot"]),
            base_ref=config.get("base_ref"),
            device=config.get("device", "cpu"),
        )

    def predict(
        self, context: PythonModelContext, model_input: list[str], params: dict[str, Any] | None = None
    ) -> list[str]:
        """Answers in the order of the stems."""
        chosen = params or {}
        return self._served.answer(
            list(model_input),
            max_new_tokens=int(chosen.get("max_new_tokens", 24)),
            chat=bool(chosen.get("chat", False)),
        )


set_model(EditedModel())
