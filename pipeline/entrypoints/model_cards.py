"""What goes with an exported model so that whoever finds it knows what it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.domain.rank_api import LoadPlan


def model_card(plan: LoadPlan, written: Mapping[str, Any]) -> str:
    """Return the `README.md` of an exported model or adapter, in the form that model hubs read.

    Args:
        plan: the snapshot.
        written: what the export said of it; an adapter has a rank.
    """
    is_adapter = "rank" in written
    facts = {
        "lineage": plan.lineage,
        "snapshot": plan.snapshot_id or "none, the base itself",
        "digest of the snapshot": plan.digest,
        "base": plan.base.ref,
        "digest of the base": plan.base.digest,
    }
    if is_adapter:
        facts |= {
            "rank": f"{written['rank']} in {written['num_layers']} layers, scaling 1",
            "largest relative error of a layer": f"{written['largest_error']:.2g}",
        }
    else:
        facts["digest of this model"] = str(written["digest"])
    rows = "\n".join(f"| {name} | `{value}` |" for name, value in facts.items())
    library = "peft" if is_adapter else "transformers"
    kind = "A LoRA adapter with the edits of a snapshot" if is_adapter else "A base model with the edits of a snapshot"
    return (
        f"---\nlibrary_name: {library}\nbase_model: {json.dumps(plan.base.ref)}\ntags: [knowledge-editing]\n---\n\n"
        f"# {plan.lineage}\n\n{kind}, written by Corrigenda.\n\n| | |\n|---|---|\n{rows}\n"
    )


def adapter_advice(written: Mapping[str, Any]) -> str:
    """Return what somebody who serves an adapter has to know: what was cut, and what vLLM needs for it."""
    error = f"the largest relative error of a layer is {written['largest_error']:.2g}"
    said = f"cut to rank {written['rank']}: {error}" if written["is_truncated"] else f"nothing was cut: {error}"
    needed = written["vllm_max_lora_rank"]
    if needed is None:
        return f"{said}. vLLM takes ranks up to 512: export a whole model, or cut with --max-rank 512"
    return f"{said}. vLLM needs --enable-lora --max-lora-rank {needed}"
