"""Asks the base with transformers alone, and the champion with MLflow alone, as an outside server would.

Reads one JSON object a line on standard input and answers each with one line, a list of texts:
`{"base": folder, "prompts": [...]}` or `{"champion": lineage, "prompts": [...]}`. The champion is loaded anew for
every line, so that what is asked is what the alias points to now.
"""

from __future__ import annotations

import json
import sys
from typing import Any

MAX_NEW_TOKENS = 16


def main(tracking_uri: str) -> None:
    """Answer lines until standard input ends."""
    for line in sys.stdin:
        asked = json.loads(line)
        if "base" in asked:
            answers = ask_base(asked["base"], asked["prompts"])
        else:
            answers = ask_champion(tracking_uri, asked["champion"], asked["prompts"])
        sys.stdout.write(json.dumps(answers) + "\n")
        sys.stdout.flush()


def ask_base(folder: str, prompts: list[str]) -> list[str]:
    """Greedy continuations of an unedited model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    tokens = model.generate(**batch, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    said: list[str] = tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return said


def ask_champion(tracking_uri: str, lineage: str, prompts: list[str]) -> list[str]:
    """Continuations of the model that is live."""
    import mlflow

    mlflow.set_tracking_uri(tracking_uri)
    model: Any = mlflow.pyfunc.load_model(f"models:/{lineage}@champion")
    return [str(answer) for answer in model.predict(prompts, params={"max_new_tokens": MAX_NEW_TOKENS})]


if __name__ == "__main__":
    main(sys.argv[1])
