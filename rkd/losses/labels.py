"""Hard labels: what was said.

Shapes: B batch, N frames, L label tokens, R rows (the valid tokens of a batch), V vocabulary.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from rkd.data.batches import Batch
from rkd.losses.base import Term, at_least_float32
from rkd.models.base import Streams
from rkd.targets import SomeRows


class CrossEntropy(Term):
    """Cross-entropy of the decoder's logits on the labels.

    Args:
        label_smoothing: share of the target's mass that is spread over the vocabulary (Szegedy et al. 2016).
    """

    needs = ("logits",)
    of_labels = True
    rows_of = "logits"

    def __init__(self, label_smoothing: float = 0.0):
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, student: Streams, teacher: Streams, batch: Batch) -> Tensor:
        valid = batch.labels_BL >= 0
        return self.of_rows(student["logits"].values_BND[valid], None, batch.labels_BL[valid]).sum()

    def of_rows(self, student_RV: Tensor, teacher_RV: Tensor | SomeRows | None, labels_R: Tensor) -> Tensor:
        logits_RV = at_least_float32(student_RV)
        return F.cross_entropy(logits_RV, labels_R, reduction="none", label_smoothing=self.label_smoothing)


class CTC(Term):
    """Connectionist temporal classification (Graves et al. 2006); the blank is the student's padding token.

    An utterance that has more labels than frames cannot be aligned; it counts nothing instead of infinity.
    """

    needs = ("ctc_logits",)
    of_labels = True
    blank = -1  # the last token, until a student is known

    def bind(self, student: Any, teacher: Any | None) -> None:
        self.blank = student.tokenizer.pad_token_id

    def forward(self, student: Streams, teacher: Streams, batch: Batch) -> Tensor:
        stream = student["ctc_logits"]
        log_probs_NBV = at_least_float32(stream.values_BND).log_softmax(-1).transpose(0, 1)
        # The labels' last token is the end of text, which CTC has no use for.
        target_lengths_B = (batch.labels_BL >= 0).sum(1) - 1
        return F.ctc_loss(
            log_probs_NBV, batch.labels_BL.clamp(min=0), stream.lengths_B, target_lengths_B,
            blank=self.blank % log_probs_NBV.shape[-1], reduction="sum", zero_infinity=True,
        )  # fmt: skip
