"""Loss terms. Each compares a student's streams with labels or with a teacher's streams.

A term returns a sum over valid frames or tokens, and ``count`` says what to divide it by; the trainer sums both over
accumulated batches and ranks first, since a mean of means is wrong where lengths are uneven. To add a term, write the
class and name it in a YAML under ``conf/loss``: nothing else changes.

Shapes: B batch, N frames, L label tokens, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rkd.audio import RATE_HZ
from rkd.data.batches import Batch
from rkd.errors import ConfigError
from rkd.models.base import Stream, Streams, evenly_spaced
from rkd.tokenizer import Tokenizer, difference, text_tokens


class Term(nn.Module):
    """A loss term.

    Attributes:
        needs: streams that the student must provide.
        teacher: streams that the teacher must provide; empty where the term needs no teacher.
    """

    needs: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()

    def bind(self, student: Any, teacher: Any | None) -> None:
        """Get to know the two models, before the first step."""

    def count(self, batch: Batch) -> Tensor:
        """Return what the term's sum is divided by: label tokens, unless a term says otherwise."""
        return batch.n_tokens

    def forward(self, student: Streams, teacher: Streams, batch: Batch) -> Tensor:
        """Return the term's sum over the batch, a scalar."""
        raise NotImplementedError


class CrossEntropy(Term):
    """Cross-entropy of the decoder's logits on the labels.

    Args:
        label_smoothing: share of the target's mass that is spread over the vocabulary (Szegedy et al. 2016).
    """

    needs = ("logits",)

    def __init__(self, label_smoothing: float = 0.0):
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, student: Streams, teacher: Streams, batch: Batch) -> Tensor:
        logits_BVL = student["logits"].values_BND.float().transpose(1, 2)
        return F.cross_entropy(
            logits_BVL, batch.labels_BL, ignore_index=-100, reduction="sum", label_smoothing=self.label_smoothing
        )


class CTC(Term):
    """Connectionist temporal classification (Graves et al. 2006); the blank is the student's padding token.

    An utterance that has more labels than frames cannot be aligned; it counts nothing instead of infinity.
    """

    needs = ("ctc_logits",)
    blank = -1  # the last token, until a student is known

    def bind(self, student: Any, teacher: Any | None) -> None:
        self.blank = student.tokenizer.pad_token_id

    def forward(self, student: Streams, teacher: Streams, batch: Batch) -> Tensor:
        stream = student["ctc_logits"]
        log_probs_NBV = stream.values_BND.float().log_softmax(-1).transpose(0, 1)
        # The labels' last token is the end of text, which CTC has no use for.
        target_lengths_B = (batch.labels_BL >= 0).sum(1) - 1
        return F.ctc_loss(
            log_probs_NBV, batch.labels_BL.clamp(min=0), stream.lengths_B, target_lengths_B,
            blank=self.blank % log_probs_NBV.shape[-1], reduction="sum", zero_infinity=True,
        )  # fmt: skip


class SoftLabels(Term):
    """What the two terms on soft labels share: the tokens that they compare.

    Where the vocabularies differ in a few special tokens, as those of Whisper's versions do, both distributions are
    renormalised over the tokens that both number alike.
    """

    shared_V: Tensor | None

    def __init__(self, temperature: float):
        super().__init__()
        self.temperature = temperature
        self.register_buffer("shared_V", None, persistent=False)

    def bind(self, student: Any, teacher: Any | None) -> None:
        assert teacher is not None
        check_same_text(teacher.tokenizer, student.tokenizer)
        self.shared_V = torch.tensor(shared_tokens(teacher.tokenizer, student.tokenizer))

    def kl(self, teacher_NV: Tensor, student_NV: Tensor) -> Tensor:
        """Return the sum of the divergences of rows of logits."""
        shared_V = self.shared_V
        if shared_V is not None and {teacher_NV.shape[-1], student_NV.shape[-1]} != {len(shared_V)}:
            teacher_NV, student_NV = (x.index_select(-1, shared_V) for x in (teacher_NV, student_NV))
        return kl_sum(teacher_NV, student_NV, self.temperature)


class TokenKL(SoftLabels):
    """KL(teacher || student) of the decoders' distributions at a temperature, times its square.

    Hinton et al. 2015, equation 4 and section 2.1: ``T^2 * sum_v p_v (log p_v - log q_v)``, with
    ``p = softmax(teacher / T)`` and ``q = softmax(student / T)``, summed over label tokens.

    Args:
        temperature: T.
    """

    needs = ("logits",)
    teacher = ("logits",)

    def __init__(self, temperature: float = 2.0):
        super().__init__(temperature)

    def forward(self, student: Streams, teacher: Streams, batch: Batch) -> Tensor:
        ours, theirs = student["logits"], teacher["logits"]
        valid_BL = ours.mask()
        return self.kl(theirs.values_BND[valid_BL], ours.values_BND[valid_BL])


class FrameKL(SoftLabels):
    """KL(teacher || student) of the CTC posteriors of each frame, at a temperature, times its square.

    The teacher's posteriors are read at the times of the student's frames. Summed over frames and divided by label
    tokens, as the CTC loss is, so that the weights of the two mean the same for CTC models as for decoders.

    Args:
        temperature: T.
    """

    needs = ("ctc_logits",)
    teacher = ("ctc_logits",)

    def __init__(self, temperature: float = 2.0):
        super().__init__(temperature)

    def forward(self, student: Streams, teacher: Streams, batch: Batch) -> Tensor:
        ours = student["ctc_logits"]
        theirs_BNV = align(teacher["ctc_logits"], ours)
        valid_BN = ours.mask()
        return self.kl(theirs_BNV[valid_BN], ours.values_BND[valid_BN])


class Hidden(Term):
    """Distance between hidden layers of student and teacher, per second of audio.

    Where the widths differ a linear projection of the student's layer is learned (FitNets, Romero et al. 2015); it is
    kept in checkpoints and left out of the finished student.

    Args:
        part: ``encoder`` or ``decoder``.
        layers: ``even`` (every student layer, spread over the teacher's), or a list of [student, teacher] layer
            numbers, counted from 1; 0 is the input of the first layer.
        distance: ``l1``, ``mse`` (means over the width) or ``cosine`` (1 - cosine similarity).
    """

    def __init__(self, part: str = "encoder", layers: str | Sequence[Sequence[int]] = "even", distance: str = "l1"):
        super().__init__()
        if part not in ("encoder", "decoder"):
            raise ConfigError(f"loss.terms.hidden.part={part}: expected encoder or decoder")
        if distance not in ("l1", "mse", "cosine"):
            raise ConfigError(f"loss.terms.hidden.distance={distance}: expected l1, mse or cosine")
        self.part, self.layers, self.distance = part, layers, distance
        self.needs = self.teacher = (f"hidden.{part}",)
        self.projections = nn.ModuleList()

    def bind(self, student: Any, teacher: Any | None) -> None:
        assert teacher is not None
        ours, theirs = student.depth[self.part], teacher.depth[self.part]
        if isinstance(self.layers, str):
            self.pairs = [(i + 1, t + 1) for i, t in enumerate(evenly_spaced(theirs, ours))]
        else:
            self.pairs = [(int(s), int(t)) for s, t in self.layers]
        for s, t in self.pairs:
            if not (0 <= s <= ours and 0 <= t <= theirs):
                raise ConfigError(
                    f"loss.terms.hidden.layers names [{s}, {t}], but the {self.part}s have "
                    f"layers 0 to {ours} (student) and 0 to {theirs} (teacher)"
                )
        if student.width != teacher.width:
            self.projections.extend(nn.Linear(student.width, teacher.width) for _ in self.pairs)

    def count(self, batch: Batch) -> Tensor:
        return batch.seconds if self.part == "encoder" else batch.n_tokens

    def forward(self, student: Streams, teacher: Streams, batch: Batch) -> Tensor:
        total = batch.clean_BT.new_zeros(())
        for i, (s, t) in enumerate(self.pairs):
            ours = student[f"hidden.{self.part}.{s}"]
            target_BND = align(teacher[f"hidden.{self.part}.{t}"], ours)
            valid_BN = ours.mask()
            x_ND = ours.values_BND[valid_BN]
            x_ND = self.projections[i](x_ND) if len(self.projections) else x_ND
            step = ours.stride / RATE_HZ if ours.stride else 1.0
            total = total + step * self._distances(x_ND.float(), target_BND[valid_BN].float()).sum()
        return total / len(self.pairs)

    def _distances(self, x_ND: Tensor, y_ND: Tensor) -> Tensor:
        if self.distance == "l1":
            return (x_ND - y_ND).abs().mean(-1)
        if self.distance == "mse":
            return ((x_ND - y_ND) ** 2).mean(-1)
        return 1.0 - F.cosine_similarity(x_ND, y_ND, dim=-1)


def shared_tokens(teacher: Tokenizer, student: Tokenizer) -> list[int]:
    """Return the numbers that stand for the same token in both vocabularies, in order."""
    theirs = teacher.get_vocab()
    return sorted(number for token, number in student.get_vocab().items() if theirs.get(token) == number)


def check_same_text(teacher: Tokenizer, student: Tokenizer) -> None:
    """Refuse vocabularies that number the tokens of texts differently: no distribution can be compared.

    Raises:
        ConfigError: with how they differ, and what to do.
    """
    if text_tokens(teacher) != text_tokens(student):
        raise ConfigError(
            "teacher and student have different vocabularies, so soft labels cannot be compared "
            f"({difference(teacher, student)}); choose loss=transcripts, or a student that inherits the teacher's"
        )


def kl_sum(teacher_NV: Tensor, student_NV: Tensor, temperature: float) -> Tensor:
    """Return ``T^2 * sum KL(softmax(teacher / T) || softmax(student / T))`` over rows of logits."""
    log_p_NV = (teacher_NV.float() / temperature).log_softmax(-1)
    log_q_NV = (student_NV.float() / temperature).log_softmax(-1)
    return temperature**2 * F.kl_div(log_q_NV, log_p_NV, reduction="sum", log_target=True)


def align(source: Stream, target: Stream) -> Tensor:
    """Return a stream's values at the time steps of another, interpolated linearly where the strides differ.

    Both streams' step ``i`` stands at sample ``i * stride``. Shape ``(B, N of target, D of source)``.
    """
    n = target.values_BND.shape[1]
    if source.stride == target.stride:
        missing = n - source.values_BND.shape[1]
        return F.pad(source.values_BND, (0, 0, 0, max(missing, 0)))[:, :n]
    assert source.stride and target.stride
    position_N = torch.arange(n, device=source.values_BND.device) * (target.stride / source.stride)
    last_B1 = (source.lengths_B - 1).clamp(min=0)[:, None]
    low_BN = torch.minimum(position_N.floor().long()[None], last_B1)
    high_BN = torch.minimum(low_BN + 1, last_B1)
    share_BN1 = (position_N[None] - low_BN).clamp(0, 1)[..., None].to(source.values_BND.dtype)
    rows_B1 = torch.arange(len(last_B1), device=low_BN.device)[:, None]
    values = source.values_BND
    return (1 - share_BN1) * values[rows_B1, low_BN] + share_BN1 * values[rows_B1, high_BN]
