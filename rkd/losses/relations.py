"""Relational distillation: how the steps of an utterance, or the utterances of a batch, lie to each other.

Shapes: B batch, N steps, D width, P pairs of utterances.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rkd.data.batches import Batch
from rkd.losses.base import align, at_least_float32, covered, step_weight
from rkd.losses.layers import LayerTerm, check_word, zeroed
from rkd.models.base import Stream, Streams


class Relations(LayerTerm):
    """Distance between the relations in a hidden layer of the student and those in one of the teacher.

    Relations are numbers whatever the width, so nothing is projected.

    Args:
        part: ``encoder`` or ``decoder``.
        layers: as of `LayerTerm`; 0 is the input of the first layer.
        between: ``frames``: the cosine similarities of all pairs of an utterance's steps; their squared differences,
            in the mean over the pairs (Tung & Mori 2019, equation 4, with an utterance's steps for the batch).
            ``utterances``: the Euclidean distances of the batch's utterances, each the mean of its steps, over their
            mean; Huber losses of their differences, in the mean over the pairs (Park et al. 2019, RKD-D, equations 4
            to 7). This alone depends on what an utterance is batched with; a batch of one counts nothing.

    Raises:
        ConfigError: an unknown part, or anything else to look between.
    """

    first = 0

    def __init__(self, part: str = "encoder", layers: str | Sequence[Sequence[int]] = "even", between: str = "frames"):
        super().__init__(part, layers)
        check_word("part", part, ("encoder", "decoder"))
        check_word("between", between, ("frames", "utterances"))
        self.stack, self.between = part, between
        self.needs = self.teacher = (f"hidden.{part}",)

    def forward(self, student: Streams, teacher: Streams, batch: Batch) -> Tensor:
        total = batch.clean_BT.new_zeros(())
        compare = of_frames if self.between == "frames" else of_utterances
        with torch.autocast(batch.clean_BT.device.type, enabled=False):
            for s, t in self.pairs:
                ours = student[f"hidden.{self.part}.{s}"]
                total = total + step_weight(ours) * compare(ours, teacher[f"hidden.{self.part}.{t}"])
        return total / len(self.pairs)


def of_frames(ours: Stream, theirs: Stream) -> Tensor:
    """Return the sum over utterances of their steps times the mean squared difference of their similarities."""
    valid_BN = ours.mask() & covered(theirs, ours)

    def similarities(values_BND: Tensor) -> Tensor:
        unit_BND = F.normalize(zeroed(at_least_float32(values_BND), valid_BN), dim=-1)
        return unit_BND @ unit_BND.mT

    difference_BNN = similarities(ours.values_BND) - similarities(align(theirs, ours))
    # The sum over the pairs / N^2, times N.
    return ((difference_BNN**2).sum((1, 2)) / valid_BN.sum(1).clamp(min=1)).sum()


def of_utterances(ours: Stream, theirs: Stream) -> Tensor:
    """Return all utterances' steps times the mean Huber loss of their normalised distances."""

    n = len(ours.lengths_B)
    if n < 2:
        return 0.0 * zeroed(ours.values_BND, ours.mask()).sum()
    i_P, j_P = torch.triu_indices(n, n, 1, device=ours.lengths_B.device)
    there_P = (ours.lengths_B[i_P] > 0) & (ours.lengths_B[j_P] > 0)  # both utterances are to be compared
    n_there = there_P.sum().clamp(min=1)

    def distances(stream: Stream) -> Tensor:
        valid_BN = stream.mask()
        sum_BD = zeroed(at_least_float32(stream.values_BND), valid_BN).sum(1)
        distance_P = F.pdist(sum_BD / valid_BN.sum(1).clamp(min=1)[:, None]) * there_P
        return distance_P / (distance_P.sum() / n_there).clamp(min=torch.finfo(distance_P.dtype).tiny)

    return ours.lengths_B.sum() * F.huber_loss(distances(ours), distances(theirs), reduction="sum") / n_there
