"""What edits should leave alone: second moments of the keys and gradients of each inner layer over plain text.

The gradients are those of the model's own predictions: labels are drawn from it, so that `mean(d d^T)` is the output
side of the Fisher matrix in the Kronecker-factored form of K-FAC (Martens and Grosse, ICML 2015), and `mean(k k^T)`
its input side. Directions in which outputs may move without changing what the model says have small moments.

Legend: I in_features, O out_features, T keys in the batch, N predicted tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from editors.models.families import EditableModel
from editors.models.hooks import capturing
from editors.models.tokens import Encoded, KeyTokens, TargetBatch
from editors.weights.tensor_files import read_tensors, write_tensors
from pipeline.domain.errors import InvalidInput, Misconfigured
from pipeline.domain.language.names import last_mention

NUM_TOKENS = 24_576
"""Most tokens that are read of each text."""
LINE_TOKENS = 24
"""Most tokens of a line: about the length of an edit's prompt, where the measured constants come from."""
NUM_SUBJECT_TOKENS = 49_152
"""Most tokens that are read for subjects: of several thousand, since each has one key."""
SUBJECT_SHARE = 0.2
"""Share of subjects in the moments of keys, measured (DECISIONS.md, 25)."""
NUM_GRADIENT_TOKENS = 6_144
"""Most tokens of each text over which gradients are measured."""
GRADIENT_TOKENS = 512
"""Most padded tokens of one forward with gradients."""
KEYS, GRADIENTS = "keys/", "gradients/"
"""What the names of the tensors in a prior's file begin with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prior:
    """Second moments of each inner parameter: mean(k k^T) and mean(d d^T)."""

    moments: dict[str, Tensor]
    """Inner parameter -> mean(k k^T) of keys, I x I, fp32 on the CPU."""
    gradient_moments: dict[str, Tensor] = field(default_factory=dict)
    """Inner parameter -> mean(d d^T) of gradients at the layer's outputs, O x O, fp32 on the CPU."""
    num_tokens: int
    """Tokens over which the mean of keys was taken, in the inner parameter with the most."""

    def only(self, names: Collection[str]) -> Self:
        """Return the moments of some inner parameters."""
        keys = {name: moment for name, moment in self.moments.items() if name in names}
        gradients = {name: moment for name, moment in self.gradient_moments.items() if name in names}
        return type(self)(moments=keys, gradient_moments=gradients, num_tokens=self.num_tokens)

    def save(self, path: Path) -> str:
        """Write the moments; return the file's SHA-256."""
        tensors = {KEYS + name: moment for name, moment in self.moments.items()}
        tensors |= {GRADIENTS + name: moment for name, moment in self.gradient_moments.items()}
        return write_tensors(path, tensors, {"kind": "prior", "num_tokens": self.num_tokens})

    @classmethod
    def load(cls, path: Path, expected_digest: str | None = None, *, names: Collection[str] | None = None) -> Self:
        """Read moments back, of some inner parameters or of all.

        Raises:
            IntegrityBroken: if the file is not a prior, or has another digest than expected.
        """
        tensors, facts = read_tensors(path, "prior", expected_digest)
        return cls(
            moments=_named(tensors, KEYS, names),
            gradient_moments=_named(tensors, GRADIENTS, names),
            num_tokens=int(facts.get("num_tokens", 0)),
        )


def measure_prior(model: EditableModel, *texts: Iterable[str], subjects: Iterable[tuple[str, str]] = ()) -> Prior:
    """Measure second moments at every token of the beginning of some texts, which count alike; summed in fp64.

    Subjects have a share of their own in the moments of keys, where a model's edit rows are subject tokens: what an
    edit moves beside itself are most of all other subjects, and a text names few.

    An encoder reads lines whole or their first halves; a decoder of its own goes on with the second. Labels are drawn
    with a seed of their own: the same model and texts give the same prior. Ranks do not divide it: each measures all.

    Args:
        model: the base.
        texts: lines of text each: of the world at large, and, better, also of what the edits are about.
        subjects: prompts and the subject in each; the state of its last token is the key.

    Raises:
        Misconfigured: if there is no text, or one without a line to read.
    """
    sequences = [_sequences(model, lines) for lines in texts]
    if not sequences or not all(sequences):
        raise Misconfigured("expected at least one line of text for the prior, got none")
    keys = [_key_moments(model, chosen) for chosen in sequences]
    gradients = [_gradient_moments(model, _beginning(chosen, NUM_GRADIENT_TOKENS)) for chosen in sequences]
    num_tokens = sum(len(one.prompt_ids) + len(one.target_ids) for chosen in sequences for one in chosen)
    of_texts = _mean(keys)
    named = _beginning(_up_to_subjects(model, subjects), NUM_SUBJECT_TOKENS) if model.has_subject_keys else []
    if not named:
        return Prior(moments=of_texts, gradient_moments=_mean(gradients), num_tokens=num_tokens)
    of_subjects = _key_moments(model, named, kind="subject")
    moments = {
        name: (1 - SUBJECT_SHARE) * moment_II + SUBJECT_SHARE * of_subjects[name].float()
        for name, moment_II in of_texts.items()
    }
    return Prior(moments=moments, gradient_moments=_mean(gradients), num_tokens=num_tokens + len(named))


def _up_to_subjects(model: EditableModel, subjects: Iterable[tuple[str, str]]) -> Iterator[Encoded]:
    """Each subject once, with what its prompt says before it: later words do not change a causal model's key."""
    seen = set()
    for prompt, subject in subjects:
        span = last_mention(prompt, subject)
        beginning = prompt[: span[1]] if span else ""
        if beginning and beginning not in seen:
            seen.add(beginning)
            with suppress(InvalidInput):  # the model may have no positions for it
                yield model.encode_named(beginning, subject)


def _mean(found: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: (sum((of[name] for of in found), torch.zeros(())) / len(found)).float() for name in found[0]}


def _key_moments(model: EditableModel, sequences: Sequence[Encoded], kind: KeyTokens = "answer") -> dict[str, Tensor]:
    """mean(k k^T) of each inner parameter, fp64 on the CPU; added up where the model is."""
    sums = {p.name: _zeros(model, p.in_features) for p in model.inner}
    num_tokens = dict.fromkeys(sums, 0)
    for batch in model.chunked_whole(sequences):
        for name, u_TI in _keys(model, batch, kind).items():
            num_tokens[name] += len(u_TI)
            sums[name] += (u_TI.T @ u_TI).double()
    return {name: (total / num_tokens[name]).cpu() for name, total in sums.items()}


def _gradient_moments(model: EditableModel, sequences: Sequence[Encoded]) -> dict[str, Tensor]:
    """mean(d d^T) of each inner parameter, fp64 on the CPU.

    The d are gradients of the loss of labels that the model itself gives. Each kind of device draws its own labels.
    """
    sums = {p.name: _zeros(model, p.out_features) for p in model.inner}
    num_tokens = dict.fromkeys(sums, 0)
    draw = torch.Generator(model.device).manual_seed(0)
    for batch in model.chunked_whole(sequences, max_tokens=GRADIENT_TOKENS):
        places = {param.name: model.key_positions(batch, param, "answer") for param in model.inner}
        with capturing(model.module, places) as seen:
            logits_NV = model.target_logits(batch).float()
            # The Fisher matrix wants labels that are drawn from the model itself, not those of the text.
            label_N = torch.multinomial(logits_NV.detach().softmax(dim=1), 1, generator=draw)[:, 0]
            loss = torch.nn.functional.cross_entropy(logits_NV, label_N, reduction="sum")
            found = seen.deltas(loss)
        for name, delta_TO in found.items():
            num_tokens[name] += len(delta_TO)
            sums[name] += (delta_TO.T @ delta_TO).double()
    return {name: (total / num_tokens[name]).cpu() for name, total in sums.items()}


def _zeros(model: EditableModel, width: int) -> Tensor:
    return torch.zeros(width, width, dtype=torch.float64, device=model.device)


def _keys(model: EditableModel, batch: TargetBatch, kind: KeyTokens) -> dict[str, Tensor]:
    """Keys of each inner parameter, T x I, fp32; of a text, where every token is a target, at all of its tokens."""
    places = {param.name: model.key_positions(batch, param, kind) for param in model.inner}
    with torch.no_grad(), capturing(model.module, places) as seen:
        model.run_to_last_inner(batch)
    return seen.u_TI


def _named(tensors: Mapping[str, Tensor], prefix: str, names: Collection[str] | None) -> dict[str, Tensor]:
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {name: tensor for name, tensor in found.items() if names is None or name in names}


def _sequences(model: EditableModel, lines: Iterable[str]) -> Sequence[Encoded]:
    encoded = (model.encode_text(line.strip(), max_tokens=LINE_TOKENS) for line in lines if line.strip())
    return _beginning(encoded, NUM_TOKENS)


def _beginning(sequences: Iterable[Encoded], num_tokens: int) -> Sequence[Encoded]:
    """The first sequences, up to a number of tokens; at least one if there is one."""
    found: list[Encoded] = []
    for sequence in sequences:
        num_tokens -= len(sequence.prompt_ids) + len(sequence.target_ids)
        if num_tokens < 0 and found:
            break
        found.append(sequence)
    return found
