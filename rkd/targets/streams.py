"""What is known of a teacher's logits where they were stored, as losses read it.

Shapes: R rows, B batch, N steps, V vocabulary, k kept logits, T temperatures, n draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rkd.models.base import Stream


@dataclass
class TopRows:
    """What is known of a teacher's rows of logits: the largest, and what the others weigh.

    Attributes:
        index_Rk: which tokens are kept.
        logits_Rk: their logits.
        log_rest_RT: log-probability of all others together, at each temperature.
        temperatures: of ``log_rest_RT``.
    """

    index_Rk: Tensor
    logits_Rk: Tensor
    log_rest_RT: Tensor
    temperatures: Sequence[float]

    def __getitem__(self, part_R: slice | Tensor) -> TopRows:
        return replace(
            self, index_Rk=self.index_Rk[part_R], logits_Rk=self.logits_Rk[part_R], log_rest_RT=self.log_rest_RT[part_R]
        )

    def each(self, change: Callable[[Tensor], Tensor]) -> TopRows:
        """Return the rows with all their tensors changed."""
        return TopRows(change(self.index_Rk), change(self.logits_Rk), change(self.log_rest_RT), self.temperatures)

    def log_probabilities(self, temperature: float) -> Tensor:
        """Return those of the kept tokens and, last, of all others together; ``(R, k + 1)``.

        They sum to 1 whatever the rounding of the logits.
        """
        log_rest_R1 = self.log_rest_RT[:, [list(self.temperatures).index(temperature)]]
        log_kept_R1 = torch.log1p(-log_rest_R1.exp())
        return torch.cat([(self.logits_Rk / temperature).log_softmax(-1) + log_kept_R1, log_rest_R1], -1)


@dataclass
class DrawnRows:
    """What is known of a teacher's rows of logits: tokens drawn from them, and the entropy of what they are drawn from.

    Attributes:
        drawn_Rn: the tokens.
        entropy_R: of ``softmax(logits / T)``.
    """

    drawn_Rn: Tensor
    entropy_R: Tensor

    def __getitem__(self, part_R: slice | Tensor) -> DrawnRows:
        return DrawnRows(self.drawn_Rn[part_R], self.entropy_R[part_R])

    def each(self, change: Callable[[Tensor], Tensor]) -> DrawnRows:
        """Return the rows with all their tensors changed."""
        return DrawnRows(change(self.drawn_Rn), change(self.entropy_R))


SomeRows = TopRows | DrawnRows


class SomeLogits(Stream):
    """A stream of logits of which not all are known.

    Args:
        all_rows: of all steps ``(B, N)``, padding too, one after the other.
        n_steps: N.
        lengths_B: valid steps of each clip.
        stride: samples between two steps, or None where the steps are label tokens.
    """

    def __init__(self, all_rows: SomeRows, n_steps: int, lengths_B: Tensor, stride: int | None):
        self.all_rows, self._n_steps, self.lengths_B, self.stride = all_rows, n_steps, lengths_B, stride

    @property
    def n_steps(self) -> int:
        return self._n_steps

    def each(self, change: Callable[[Tensor], Tensor]) -> SomeLogits:
        return SomeLogits(self.all_rows.each(change), self._n_steps, change(self.lengths_B), self.stride)

    def rows(self, valid_BN: Tensor) -> SomeRows:
        """Return the rows of some steps."""
        return self.all_rows[valid_BN.flatten()]

    def rows_at(self, steps_BN: Tensor, valid_BN: Tensor) -> SomeRows:
        """Return the rows of steps that are named, clip by clip, as far as they are valid."""
        first_B1 = torch.arange(len(self.lengths_B), device=steps_BN.device)[:, None] * self._n_steps
        return self.all_rows[(first_B1 + steps_BN)[valid_BN]]
