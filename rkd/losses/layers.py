"""What the terms on layers share: which layers are compared, and what their sums are divided by.

Shapes: B batch, N steps, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rkd.data.batches import Batch
from rkd.errors import ConfigError
from rkd.losses.base import Term, check_same_text
from rkd.models.base import evenly_spaced


class LayerTerm(Term):
    """A term on pairs of layers, per second of audio, or per label token where a step is one.

    Args:
        part: whose layers.
        layers: ``even``: every student layer, spread over the teacher's; ``last``: every student layer, each with the
            teacher's last; or a list of [student, teacher] layer numbers, counted from 1.
    """

    stack: str  # the part of the models whose layers are counted: encoder or decoder
    first = 1  # the lowest number that `layers` may name

    def __init__(self, part: str, layers: str | Sequence[Sequence[int]]):
        super().__init__()
        self.part, self.layers = part, layers

    def bind(self, student: Any, teacher: Any | None) -> None:
        """Find the pairs of layers.

        Raises:
            ConfigError: a layer that is not there, an unknown map, or label tokens that have other numbers.
        """
        assert teacher is not None
        if self.stack == "decoder":
            check_same_text(teacher.tokenizer, student.tokenizer)
        self.pairs = self._pairs(student.depth[self.stack], teacher.depth[self.stack])

    def _pairs(self, ours: int, theirs: int) -> list[tuple[int, int]]:
        if self.layers == "even":
            return [(i + 1, t + 1) for i, t in enumerate(evenly_spaced(theirs, ours))]
        if self.layers == "last":
            return [(i + 1, theirs) for i in range(ours)]
        if isinstance(self.layers, str):
            raise ConfigError(f"layers={self.layers}: expected even, last or a list of [student, teacher] numbers")
        pairs = [(int(s), int(t)) for s, t in self.layers]
        for s, t in pairs:
            if not (self.first <= s <= ours and self.first <= t <= theirs):
                raise ConfigError(
                    f"{type(self).__name__}: layers names [{s}, {t}], but the {self.stack}s have layers {self.first} "
                    f"to {ours} (student) and {self.first} to {theirs} (teacher)"
                )
        return pairs

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(f"{stream}.{t}" for stream in self.teacher for t in dict.fromkeys(t for _, t in self.pairs))

    def count(self, batch: Batch) -> Tensor:
        return batch.seconds if self.part == "encoder" else batch.n_tokens


def check_word(key: str, value: str, words: Sequence[str]) -> None:
    """Refuse a value that is none of a few words.

    Raises:
        ConfigError: with those words.
    """
    if value not in words:
        raise ConfigError(f"{key}={value}: expected {', '.join(words)}")


def zeroed(values_BND: Tensor, valid_BN: Tensor) -> Tensor:
    """Return a stream's values with zeros where they are undefined."""
    return torch.where(valid_BN[..., None], values_BND, 0.0)


def centred(values_BND: Tensor, valid_BN: Tensor) -> Tensor:
    """Return a stream's values without the mean of each clip's features over its valid steps; zero beyond."""
    mean_B1D = zeroed(values_BND, valid_BN).sum(1, keepdim=True) / valid_BN.sum(1).clamp(min=1)[:, None, None]
    return zeroed(values_BND - mean_B1D, valid_BN)
