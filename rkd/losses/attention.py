"""Where the models look: attention maps.

Shapes: B batch, Q queries, K keys, R rows (the valid queries of a batch).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rkd.data.batches import Batch
from rkd.errors import ConfigError
from rkd.losses.base import at_least_float32, covered, step_weight
from rkd.losses.layers import LayerTerm, check_word
from rkd.models.base import Stream, Streams


class AttentionMaps(LayerTerm):
    """Distance between the attention of student and teacher, each the mean over the layer's heads.

    Both rows are normalised over the keys that are speech: a teacher with the original window also looks at the silence
    after it.

    Args:
        part: ``encoder`` (self-attention) or ``cross`` (the decoder's attention to the encoder).
        layers: as of `LayerTerm`.
        distance: of each query's row of weights: ``kl``: KL(teacher || student), as Wang et al. 2020 (MiniLM, equation
            4), or ``mse``: the mean squared difference over the keys, as Jiao et al. 2020 (TinyBERT, equation 7), of
            weights instead of scores.

    Raises:
        ConfigError: an unknown part or distance.
    """

    def __init__(self, part: str = "encoder", layers: str | Sequence[Sequence[int]] = "even", distance: str = "kl"):
        super().__init__(part, layers)
        check_word("part", part, ("encoder", "cross"))
        check_word("distance", distance, ("kl", "mse"))
        self.stack = "encoder" if part == "encoder" else "decoder"
        self.distance = distance
        self.needs = self.teacher = (f"attention.{part}",)

    def bind(self, student: Any, teacher: Any | None) -> None:
        """Find the layers, and make both models give their maps.

        Raises:
            ConfigError: the encoders have different strides, or a layer is not there.
        """
        assert teacher is not None
        super().bind(student, teacher)
        if student.stride != teacher.stride:
            raise ConfigError(
                f"attention maps cannot be compared: the student's encoder makes a step of {student.stride} samples, "
                f"the teacher's of {teacher.stride}; take models of one stride, or leave out the term"
            )
        for model in (student, teacher):
            model.provide_attention(self.part)

    def forward(self, student: Streams, teacher: Streams, batch: Batch) -> Tensor:
        total = batch.clean_BT.new_zeros(())
        for s, t in self.pairs:
            ours, theirs = student[f"attention.{self.part}.{s}"], teacher[f"attention.{self.part}.{t}"]
            valid_BQ = ours.mask() & covered(theirs, ours)
            n_queries, n_keys = (min(ours.values_BND.shape[i], theirs.values_BND.shape[i]) for i in (1, 2))
            p_RK, q_RK = (self._rows(stream, valid_BQ, n_queries, n_keys) for stream in (theirs, ours))
            total = total + step_weight(ours) * self._distances(p_RK, q_RK).sum()
        return total / len(self.pairs)

    @staticmethod
    def _rows(stream: Stream, valid_BQ: Tensor, n_queries: int, n_keys: int) -> Tensor:
        rows_RK = at_least_float32(stream.values_BND[:, :n_queries, :n_keys][valid_BQ[:, :n_queries]])
        return rows_RK / rows_RK.sum(-1, keepdim=True).clamp(min=torch.finfo(rows_RK.dtype).tiny)

    def _distances(self, p_RK: Tensor, q_RK: Tensor) -> Tensor:
        if self.distance == "kl":
            # Beyond the keys both are zero, and so is what they add.
            tiny = torch.finfo(q_RK.dtype).tiny
            return (torch.xlogy(p_RK, p_RK) - p_RK * q_RK.clamp(min=tiny).log()).sum(-1)
        n_keys_R = ((p_RK > 0) | (q_RK > 0)).sum(-1).clamp(min=1)
        return ((p_RK - q_RK) ** 2).sum(-1) / n_keys_R
