"""Soft labels: a teacher's distribution over tokens instead of one token (Hinton et al. 2015).

Shapes: B batch, L label tokens, N frames, R rows (the valid tokens or frames of a batch), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rkd.data.batches import Batch
from rkd.errors import ConfigError
from rkd.losses.base import Term, align, at_least_float32, check_same_text, covered, nearest, shared_tokens
from rkd.losses.schedules import Schedule
from rkd.models.base import Streams
from rkd.targets import DrawnRows, SomeLogits, SomeRows, TopRows

DIVERGENCES = ("kl", "reverse_kl", "js", "cross_entropy", "mse")


class SoftLabels(Term):
    """A divergence of the student's distribution from the teacher's, of each row, at a temperature T.

    With ``p = softmax(teacher / T)`` and ``q = softmax(student / T)``; all but ``mse`` are multiplied by T^2, so that
    gradients keep their size (Hinton et al. 2015, section 2.1). Where the vocabularies differ in a few special tokens,
    as those of Whisper's versions do, both distributions are renormalised over the tokens that both number alike.

    Args:
        divergence: ``kl``: KL(p || q), Hinton et al. 2015, equation 4 up to the teacher's entropy; ``reverse_kl``:
            KL(q || p), which lets the student leave out what it cannot follow (Gu et al. 2024, MiniLLM); ``js``:
            ``beta KL(p || m) + (1 - beta) KL(q || m)`` with ``m = beta p + (1 - beta) q`` (Agarwal et al. 2024, GKD,
            section 2); ``cross_entropy``: ``-sum p log q``; ``mse``: mean over the vocabulary of the squared
            difference of the logits, without a temperature (Kim et al. 2021).
        temperature: T; or ``{from, to, shape}``, over the training; or ``adaptive``, see `adaptive_temperature`.
        top_k: of how many of the teacher's most likely tokens the distributions are compared, with one more outcome
            for all the others; None for the whole vocabulary.
        beta: of ``js``, between 0 and 1.
        temperature_range: lowest and highest T of ``adaptive``.

    Raises:
        ConfigError: an unknown divergence, or ``mse`` with ``top_k``: logits have no sum over the others.
    """

    stream: str
    shared_V: Tensor | None

    def __init__(
        self,
        divergence: str = "kl",
        temperature: float | str | Mapping[str, Any] = 2.0,
        top_k: int | None = None,
        beta: float = 0.5,
        temperature_range: Sequence[float] = (1.0, 4.0),
    ):
        super().__init__()
        if divergence not in DIVERGENCES:
            raise ConfigError(f"divergence={divergence}: expected {', '.join(DIVERGENCES)}")
        if divergence == "mse" and top_k is not None:
            raise ConfigError("divergence=mse compares logits, which have no rest: set top_k=null")
        self.divergence, self.top_k, self.beta = divergence, top_k, beta
        self.temperature_range = temperature_range
        self.schedule = None if isinstance(temperature, str) else Schedule.of(temperature)  # None: adaptive
        self.at(0.0)
        self.register_buffer("shared_V", None, persistent=False)

    def bind(self, student: Any, teacher: Any | None) -> None:
        assert teacher is not None
        check_same_text(teacher.tokenizer, student.tokenizer)
        self.shared_V = torch.tensor(shared_tokens(teacher.tokenizer, student.tokenizer))

    def at(self, share: float) -> None:
        self.temperature = self.schedule.at(share) if self.schedule else None

    def forward(self, student: Streams, teacher: Streams, batch: Batch) -> Tensor:
        ours, theirs = student[self.stream], teacher[self.stream]
        valid = ours.mask() & covered(theirs, ours)
        if isinstance(theirs, SomeLogits):  # between two frames that each know other tokens there is nothing
            taught: Tensor | SomeRows = theirs.rows_at(nearest(theirs, ours), valid)
        else:
            taught = align(theirs, ours)[valid]
        return self.of_rows(ours.values_BND[valid], taught, valid).sum()

    def of_rows(self, student_RV: Tensor, teacher_RV: Tensor | SomeRows | None, labels_R: Tensor) -> Tensor:
        """Return the divergence of each row of logits; shape ``(R,)``; the labels are not looked at."""
        assert teacher_RV is not None
        if isinstance(teacher_RV, TopRows):
            return self._of_top(at_least_float32(student_RV), teacher_RV)
        if isinstance(teacher_RV, DrawnRows):
            return self._of_drawn(at_least_float32(student_RV), teacher_RV)
        shared_V = self.shared_V
        if shared_V is not None and {teacher_RV.shape[-1], student_RV.shape[-1]} != {len(shared_V)}:
            teacher_RV, student_RV = (x.index_select(-1, shared_V) for x in (teacher_RV, student_RV))
        teacher_RV, student_RV = at_least_float32(teacher_RV), at_least_float32(student_RV)
        if self.divergence == "mse":
            return ((teacher_RV - student_RV) ** 2).mean(-1)
        if self.temperature is None:
            temperature_R = adaptive_temperature(teacher_RV, *self.temperature_range)
        else:
            temperature_R = teacher_RV.new_full((len(teacher_RV),), self.temperature)
        log_p_RV = (teacher_RV / temperature_R[:, None]).log_softmax(-1)
        log_q_RV = (student_RV / temperature_R[:, None]).log_softmax(-1)
        if self.top_k is not None and self.top_k < log_p_RV.shape[-1]:
            log_p_RV, log_q_RV = top_and_rest(log_p_RV, log_q_RV, self.top_k)
        return temperature_R**2 * self._divergence(log_p_RV, log_q_RV)

    def _of_top(self, student_RV: Tensor, teacher: TopRows) -> Tensor:
        """Return the same of a teacher's largest logits, with one more outcome for all others, as with ``top_k``."""
        assert self.temperature is not None  # targets of a temperature that changes are not stored
        log_q_RV = (student_RV / self.temperature).log_softmax(-1)
        log_q_RV = with_rest(log_q_RV, teacher.index_Rk)
        return self.temperature**2 * self._divergence(teacher.log_probabilities(self.temperature), log_q_RV)

    def _of_drawn(self, student_RV: Tensor, teacher: DrawnRows) -> Tensor:
        """Return an estimate without bias of ``-sum p log q``, or of KL(p || q), from tokens drawn from p."""
        assert self.temperature is not None
        log_q_RV = (student_RV / self.temperature).log_softmax(-1)
        cross_entropy_R = -log_q_RV.gather(-1, teacher.drawn_Rn).mean(-1)
        known_R = teacher.entropy_R if self.divergence == "kl" else 0.0
        return self.temperature**2 * (cross_entropy_R - known_R)

    def _divergence(self, log_p_RV: Tensor, log_q_RV: Tensor) -> Tensor:
        if self.divergence == "kl":
            return kl(log_p_RV, log_q_RV)
        if self.divergence == "reverse_kl":
            return kl(log_q_RV, log_p_RV)
        if self.divergence == "cross_entropy":
            return -(log_p_RV.exp() * log_q_RV).sum(-1)
        log_m_RV = torch.logaddexp(log_p_RV + math.log(self.beta), log_q_RV + math.log1p(-self.beta))
        return self.beta * kl(log_p_RV, log_m_RV) + (1 - self.beta) * kl(log_q_RV, log_m_RV)


class SoftTokens(SoftLabels):
    """Soft labels of a decoder: a row is a label token. Arguments as of `SoftLabels`."""

    needs = ("logits",)
    teacher = ("logits",)
    stream = rows_of = "logits"


class SoftFrames(SoftLabels):
    """Soft labels of a CTC head: a row is a frame. Arguments as of `SoftLabels`.

    The teacher's logits are read at the times of the student's frames; where the largest alone are stored, at the
    teacher's frame that is nearest. Summed over frames and divided by label tokens,
    as the CTC loss is, so that the weights of the two mean the same for CTC models as for decoders.
    """

    needs = ("ctc_logits",)
    teacher = ("ctc_logits",)
    stream = "ctc_logits"


def kl(log_p_RV: Tensor, log_q_RV: Tensor) -> Tensor:
    """Return KL(p || q) of each row of log-probabilities."""
    return F.kl_div(log_q_RV, log_p_RV, reduction="none", log_target=True).sum(-1)


def top_and_rest(log_p_RV: Tensor, log_q_RV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return both log-probabilities of p's k most likely tokens, and of any other token; shapes ``(R, k + 1)``."""
    top_Rk = log_p_RV.topk(k, dim=-1).indices
    return with_rest(log_p_RV, top_Rk), with_rest(log_q_RV, top_Rk)


def with_rest(log_RV: Tensor, kept_Rk: Tensor) -> Tensor:
    """Return the log-probabilities of some tokens of each row and, last, of any other; ``(R, k + 1)``.

    The rest's mass is summed over its own tokens: one minus the others' would be rounding where it is small.
    """
    rest_R1 = log_RV.scatter(-1, kept_Rk, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([log_RV.gather(-1, kept_Rk), rest_R1], dim=-1)


def adaptive_temperature(logits_RV: Tensor, lowest: float, highest: float) -> Tensor:
    """Return a temperature for each row that grows with the teacher's confidence; shape ``(R,)``.

    ``T = lowest + (highest - lowest) (1 - H / log V)``, with H the entropy of ``softmax(logits)``: where the teacher is
    sure, what it says of the other tokens is brought out; where it is not, its distribution stays as it is. The
    formula is rkd's own; its reason, that one temperature leaves some rows too sharp and others too flat, is that of
    Luong et al. 2026 (CIST), who scale T with the row's largest logit instead.
    """
    entropy_R = torch.special.entr(logits_RV.detach().softmax(-1)).sum(-1)
    return lowest + (highest - lowest) * (1 - entropy_R / math.log(logits_RV.shape[-1]))
