"""Keys and gradients of sequences, read in one way by every editor and every training objective.

Legend: B sequences in a batch, S sequences in all, N target tokens, T chosen tokens, I in_features, O out_features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editors.measure.losses import edit_loss, target_log_probability
from editors.models.families import EditableModel, InnerParam, TargetBatch
from editors.models.hooks import Places, capturing


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Keys and gradients of S sequences: the rows of a sequence lie together, in the order of the sequences."""

    u_TI: dict[str, Tensor]
    """Inner parameter -> inputs of its layer (keys), fp32."""
    delta_TO: dict[str, Tensor]
    """Inner parameter -> gradients of the loss at its layer's output, fp32."""
    sequence_T: dict[str, Tensor]
    """Inner parameter -> the sequence that each row belongs to; does not decrease."""
    probability_N: Tensor
    """Probability of each target token, fp32."""
    sequence_N: Tensor
    """The sequence that each target token belongs to; does not decrease."""

    def lengths(self, name: str) -> list[int]:
        """Return how many rows each sequence has in an inner parameter, S numbers."""
        num_sequences = int(self.sequence_N[-1]) + 1  # every sequence has a target token, and so the last one
        return torch.bincount(self.sequence_T[name], minlength=num_sequences).tolist()

    def slices(self, name: str) -> list[slice]:
        """Return the rows of each sequence in an inner parameter, S slices."""
        lengths = self.lengths(name)
        ends = torch.tensor(lengths).cumsum(dim=0).tolist()
        return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]

    def least(self, group_S: Sequence[int]) -> Tensor:
        """Return the probability of the least probable target token of each group of sequences.

        Args:
            group_S: the group of each sequence, from 0; every group has a sequence.
        """
        group_N = torch.tensor(list(group_S), device=self.sequence_N.device)[self.sequence_N]
        ones = self.probability_N.new_ones(max(group_S) + 1)
        return ones.scatter_reduce(0, group_N, self.probability_N, "amin")

    def probability_of_rows(self, name: str, *, predicts_target: bool) -> Tensor:
        """Return the probability of each row's target token, T; of its sequence's least probable where it has none."""
        if predicts_target:
            return self.probability_N
        return self.least(range(int(self.sequence_N[-1]) + 1))[self.sequence_T[name]]


def key_gradients(
    model: EditableModel, batch: TargetBatch, places: Mapping[str, Places]
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Run a batch forward and backward.

    Args:
        model: as it is now; side branches that are entered count.
        batch: prompts and targets.
        places: inner parameter -> the tokens to read in its layer; without any, only the probabilities are read.

    Returns:
        Keys (T x I) and gradients (T x O) by inner parameter, and the log-probability of each target token (N), all
        fp32 and without gradient.
    """
    with torch.set_grad_enabled(bool(places)), capturing(model.module, places) as seen:
        log_probability_N = target_log_probability(model.target_logits(batch), batch)
        delta_TO = seen.deltas(edit_loss(log_probability_N, batch)) if places else {}
    return seen.u_TI, delta_TO, log_probability_N.detach()


def read_pairs(
    model: EditableModel,
    prepared: Iterable[tuple[Sequence[int], TargetBatch]],
    places_of: Callable[[TargetBatch], Mapping[str, Places]],
) -> Pairs:
    """Read sequences in batches; every rank reads its own and gets all of them.

    Args:
        model: as it is now; side branches that are entered count.
        prepared: this rank's batches, each with the places of its sequences in the list they were made from. A batch
            without places is a filler: it is run because other ranks run one, and its numbers are dropped.
        places_of: the tokens of a batch to read in the layer of each inner parameter.

    Returns:
        The pairs, on the model's device.
    """
    # Ranks exchange what is on the CPU. A rank by itself leaves everything where it is: to fetch each batch of an
    # accelerator would be to wait for each.
    device = model.device if model.comm.num_ranks == 1 else torch.device("cpu")
    own: list[Pairs] = []
    for chosen, batch in prepared:
        places = places_of(batch)
        u_TI, delta_TO, log_probability_N = key_gradients(model, batch, places)
        if not chosen:
            continue
        sequence_B = torch.tensor(chosen, device=device)
        own.append(
            Pairs(
                u_TI={name: rows.to(device) for name, rows in u_TI.items()},
                delta_TO={name: rows.to(device) for name, rows in delta_TO.items()},
                sequence_T={name: sequence_B[row_T.to(device)] for name, (row_T, _) in places.items()},
                probability_N=log_probability_N.exp().to(device),
                sequence_N=sequence_B[batch.row_N.to(device)],
            )
        )
    return _joined([pairs for of_rank in model.comm.gathered(own) for pairs in of_rank], model.device)


def read_keys(
    model: EditableModel,
    prepared: Iterable[tuple[Sequence[int], TargetBatch]],
    params: Sequence[InnerParam],
    places_of: Callable[[TargetBatch], Mapping[str, Places]],
) -> dict[str, Tensor]:
    """Read the keys of sequences in batches, as `read_pairs` does, without targets and gradients.

    Args:
        model: as it is now; side branches that are entered count.
        prepared: this rank's batches, as `read_pairs` takes them.
        params: the inner parameters; layers after the last of them may be left out.
        places_of: the tokens of a batch to read in the layer of each.

    Returns:
        Inner parameter -> keys (T x I, fp32), in the order of the sequences.
    """
    device = model.device if model.comm.num_ranks == 1 else torch.device("cpu")
    own: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    for chosen, batch in prepared:
        places = places_of(batch)
        with torch.no_grad(), capturing(model.module, places) as seen:
            model.run_to_last_inner(batch, params)
        if chosen:
            sequence_B = torch.tensor(chosen, device=device)
            own.append(
                (
                    {name: rows.to(device) for name, rows in seen.u_TI.items()},
                    {name: sequence_B[row_T.to(device)] for name, (row_T, _) in places.items()},
                )
            )
    parts = [part for of_rank in model.comm.gathered(own) for part in of_rank]
    keys = {}
    for name in [param.name for param in params]:
        order = torch.cat([of[name] for _, of in parts]).argsort(stable=True)
        keys[name] = torch.cat([of[name] for of, _ in parts])[order].to(model.device)
    return keys


def _joined(parts: Sequence[Pairs], device: torch.device) -> Pairs:
    """Put the rows of all parts in the order of the sequences, whichever rank and batch read them."""
    # Batches hold sequences of like length, not neighbours. A stable sort keeps the tokens of a sequence in order.
    order_T = {
        name: torch.cat([part.sequence_T[name] for part in parts]).argsort(stable=True) for name in parts[0].u_TI
    }
    order_N = torch.cat([part.sequence_N for part in parts]).argsort(stable=True)

    def rows(of_part: Callable[[Pairs], dict[str, Tensor]]) -> dict[str, Tensor]:
        return {
            name: torch.cat([of_part(part)[name] for part in parts])[order].to(device)
            for name, order in order_T.items()
        }

    return Pairs(
        u_TI=rows(lambda part: part.u_TI),
        delta_TO=rows(lambda part: part.delta_TO),
        sequence_T=rows(lambda part: part.sequence_T),
        probability_N=torch.cat([part.probability_N for part in parts])[order_N].to(device),
        sequence_N=torch.cat([part.sequence_N for part in parts])[order_N].to(device),
    )
