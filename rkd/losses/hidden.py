"""Distances between hidden layers.

Shapes: B batch, N steps, R rows (the valid steps of a batch), D width of the student's layer (after its projection),
E width of the teacher's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rkd.data.batches import Batch
from rkd.losses.base import align, at_least_float32, covered, step_weight
from rkd.losses.layers import LayerTerm, centred, check_word, zeroed
from rkd.models.base import Streams

OFF_DIAGONAL = 0.005  # Zbontar et al. 2021, section 4
_EPSILON = 1e-5  # as in batch norm


class Hidden(LayerTerm):
    """Distance between hidden layers of student and teacher.

    Where the widths differ a linear projection of the student's layer is learned (FitNets, Romero et al. 2015); it is
    kept in checkpoints and left out of the finished student. ``cka`` needs none.

    Args:
        part: ``encoder`` or ``decoder``.
        layers: as of `LayerTerm`; 0 is the input of the first layer.
        distance: of each step: ``l1``, ``mse`` (means over the width), ``cosine`` (1 - cosine similarity) or
            ``l1_cosine`` (``l1 - cosine_weight * log sigmoid(cosine similarity)``, Chang et al. 2022, DistilHuBERT,
            equation 1). Of each utterance, which then counts as much as its steps: ``correlation`` or ``cka``; see the
            functions of these names.
        cosine_weight: of ``l1_cosine``.

    Raises:
        ConfigError: an unknown part or distance.
    """

    first = 0

    def __init__(
        self,
        part: str = "encoder",
        layers: str | Sequence[Sequence[int]] = "even",
        distance: str = "l1",
        cosine_weight: float = 1.0,
    ):
        super().__init__(part, layers)
        check_word("part", part, ("encoder", "decoder"))
        check_word("distance", distance, ("l1", "mse", "cosine", "l1_cosine", "correlation", "cka"))
        self.stack, self.distance, self.cosine_weight = part, distance, cosine_weight
        self.needs = self.teacher = (f"hidden.{part}",)
        self.projections = nn.ModuleList()

    def bind(self, student: Any, teacher: Any | None) -> None:
        assert teacher is not None
        super().bind(student, teacher)
        if student.width != teacher.width and self.distance != "cka":
            self.projections.extend(nn.Linear(student.width, teacher.width) for _ in self.pairs)

    def forward(self, student: Streams, teacher: Streams, batch: Batch) -> Tensor:
        total = batch.clean_BT.new_zeros(())
        for i, (s, t) in enumerate(self.pairs):
            ours = student[f"hidden.{self.part}.{s}"]
            theirs = teacher[f"hidden.{self.part}.{t}"]
            theirs_BNE, valid_BN = align(theirs, ours), ours.mask() & covered(theirs, ours)
            x_BND = zeroed(ours.values_BND, valid_BN)
            x_BND = self.projections[i](x_BND) if len(self.projections) else x_BND
            x_BND, theirs_BNE = at_least_float32(x_BND), at_least_float32(theirs_BNE)
            total = total + step_weight(ours) * self._distance(x_BND, theirs_BNE, valid_BN)
        return total / len(self.pairs)

    def _distance(self, x_BND: Tensor, y_BNE: Tensor, valid_BN: Tensor) -> Tensor:
        """Return the sum of the distances over valid steps."""
        if self.distance in OF_UTTERANCES:
            # In bf16 a sum over a second's products would have lost most of its digits.
            with torch.autocast(x_BND.device.type, enabled=False):
                return (valid_BN.sum(1) * OF_UTTERANCES[self.distance](x_BND, y_BNE, valid_BN)).sum()
        x_RD, y_RD = x_BND[valid_BN], y_BNE[valid_BN]
        l1_R = (x_RD - y_RD).abs().mean(-1)
        if self.distance == "l1":
            return l1_R.sum()
        if self.distance == "mse":
            return ((x_RD - y_RD) ** 2).mean(-1).sum()
        cosine_R = F.cosine_similarity(x_RD, y_RD, dim=-1)
        if self.distance == "cosine":
            return (1.0 - cosine_R).sum()
        return (l1_R - self.cosine_weight * F.logsigmoid(cosine_R)).sum()


def correlation(x_BND: Tensor, y_BND: Tensor, valid_BN: Tensor) -> Tensor:
    """Return how far the features' cross-correlation over each utterance's steps is from the identity; shape ``(B,)``.

    Zbontar et al. 2021 (Barlow Twins, equation 1), with an utterance's steps for the batch, and divided by the width:
    ``(sum_i (1 - C_ii)^2 + 0.005 sum_i sum_{j != i} C_ij^2) / D``, ``C = x' y / N``, where x and y are standardised
    over the steps.
    """
    n_B11 = valid_BN.sum(1).clamp(min=1)[:, None, None]

    def standardised(values_BND: Tensor) -> Tensor:
        values_BND = centred(values_BND, valid_BN)
        return values_BND * torch.rsqrt((values_BND**2).sum(1, keepdim=True) / n_B11 + _EPSILON)

    c_BDD = standardised(x_BND).mT @ standardised(y_BND) / n_B11
    diagonal_BD = c_BDD.diagonal(dim1=1, dim2=2)
    others_B = (c_BDD**2).sum((1, 2)) - (diagonal_BD**2).sum(1)
    return (((1 - diagonal_BD) ** 2).sum(1) + OFF_DIAGONAL * others_B) / c_BDD.shape[1]


def cka(x_BND: Tensor, y_BNE: Tensor, valid_BN: Tensor) -> Tensor:
    """Return 1 - linear centred kernel alignment of each utterance over its steps; shape ``(B,)``.

    Kornblith et al. 2019, section 3: ``|y' x|^2 / (|x' x| |y' y|)`` with Frobenius norms, x and y centred over the
    steps. The same for any rotation and scale of either side. It is biased upwards where an utterance has fewer steps
    than features.
    """
    x_BND, y_BNE = centred(x_BND, valid_BN), centred(y_BNE, valid_BN)
    norms_B = torch.linalg.matrix_norm(x_BND.mT @ x_BND) * torch.linalg.matrix_norm(y_BNE.mT @ y_BNE)
    aligned_B = ((y_BNE.mT @ x_BND) ** 2).sum((1, 2))
    return 1.0 - aligned_B / norms_B.clamp(min=torch.finfo(norms_B.dtype).tiny)


OF_UTTERANCES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"correlation": correlation, "cka": cka}
