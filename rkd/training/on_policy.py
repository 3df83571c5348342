"""On-policy distillation: student and teacher are compared on what the student itself writes.

Generalised knowledge distillation (GKD, Agarwal et al. 2024, algorithm 1): trained on labels alone, a decoder never
meets its own mistakes, which are what it goes on from when it is used.

Shapes: B batch, L label tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rkd.data.batches import Batch, pad_labels
from rkd.draws import unit_hash


class OnPolicy:
    """Gives a share of the batches the student's own transcripts as labels.

    Which batches these are depends on the seed and on their number alone, and what is drawn for an utterance on the
    utterance: a resumed training meets the same ones.

    Args:
        student: a recogniser with a decoder.
        share: of the batches, 0 to 1 (GKD's lambda).
        temperature: of the draws (GKD draws at 1); 0 is greedy.
        seed: of the training.
    """

    def __init__(self, student: Any, share: float, temperature: float, seed: int):
        self.student, self.share, self.temperature, self.seed = student, share, temperature, seed

    def __call__(self, batch: Batch, number: int) -> Batch:
        """Return the batch of a number as it is, or with labels that the student writes of what it hears."""
        if unit_hash(f"on policy/{self.seed}/{number}") >= self.share:
            return batch
        seeds = batch.draws.below("on policy", 2**53).tolist()
        training = self.student.training
        self.student.eval()  # as it is used: without dropout
        tokens = self.student.sample(batch.noisy_BT, batch.lengths_B, self.temperature, seeds)
        self.student.train(training)
        return replace(batch, labels_BL=pad_labels(tokens).to(batch.labels_BL.device), before_BP=None, on_policy=True)
