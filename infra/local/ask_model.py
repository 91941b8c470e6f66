"""Asks the base with transformers alone, and the champion with MLflow alone, as an outside server would.

Reads one JSON object a line on standard input and answers each with one line of JSON:
`{"base": folder, "stems": [...], "chats": [...]}` or `{"champion": lineage, "package_digest": digest, "stems": [...],
"chats": [...]}` gives `{"stems": [...], "chats": [...]}`. A chat is a user's turn, put into the model's chat template.
The champion is loaded anew for every line, so that what is asked is what the alias points to now. Its files are checked
before MLflow runs any of them: they have to have the digest that whoever asks has from elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEM_TOKENS = 16
CHAT_TOKENS = 32

Ask = Callable[[list[str], bool], list[str]]
"""(texts, whether each is a turn of a chat) -> what a model says to each."""


def main(tracking_uri: str) -> None:
    """Answer lines until standard input ends."""
    for line in sys.stdin:
        asked = json.loads(line)
        ask = (
            base(asked["base"])
            if "base" in asked
            else champion(tracking_uri, asked["champion"], asked["package_digest"])
        )
        answers = {"stems": ask(asked["stems"], False), "chats": ask(asked["chats"], True)}
        sys.stdout.write(json.dumps(answers) + "\n")
        sys.stdout.flush()


def base(folder: str) -> Ask:
    """Load an unedited model; it answers greedily."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def ask(texts: list[str], is_chat: bool) -> list[str]:
        if not texts:
            return []
        prompts = [_templated(tokenizer, text) for text in texts] if is_chat else texts
        batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=not is_chat)
        tokens = model.generate(**batch, max_new_tokens=CHAT_TOKENS if is_chat else STEM_TOKENS, do_sample=False)
        said: list[str] = tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return said

    return ask


def champion(tracking_uri: str, lineage: str, expected: str) -> Ask:
    """Load the model that is live, if its files have the expected digest."""
    import mlflow

    mlflow.set_tracking_uri(tracking_uri)
    with tempfile.TemporaryDirectory(prefix="corrigenda-champion-") as into:
        folder = mlflow.artifacts.download_artifacts(f"models:/{lineage}@champion", dst_path=into)
        if (found := package_digest(Path(folder))) != expected:
            raise ValueError(f"expected the files of {lineage}@champion to have the digest {expected}, got {found}")
        model: Any = mlflow.pyfunc.load_model(folder, model_config={"package_digest": expected})

    def ask(texts: list[str], is_chat: bool) -> list[str]:
        if not texts:
            return []
        params = {"max_new_tokens": CHAT_TOKENS if is_chat else STEM_TOKENS, "chat": is_chat}
        return [str(answer) for answer in model.predict(texts, params=params)]

    return ask


def package_digest(folder: Path) -> str:
    """Return the digest of a model version: SHA-256 over what `sha256sum` says of its files, by name."""
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = sorted((name for name in files if name != "registered_model_meta"), key=os.fsencode)
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _templated(tokenizer: Any, text: str) -> str:
    turns = [{"role": "user", "content": text}]
    templated: str = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    return templated


if __name__ == "__main__":
    main(sys.argv[1])
