"""What a loss term is, and how the streams and the vocabularies of two models are brought together.

Shapes: B batch, N steps, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rkd.audio import RATE_HZ
from rkd.data.batches import Batch
from rkd.errors import ConfigError
from rkd.models.base import Stream, Streams
from rkd.targets import SomeRows
from rkd.tokenizer import Tokenizer, difference, text_tokens

ITSELF = -1  # stands for the student on clean speech where others are teachers, numbered from 0


class Term(nn.Module):
    """A loss term.

    Attributes:
        needs: streams that the student must provide.
        teacher: streams that the teacher must provide; empty where the term needs no teacher.
        of_labels: whether it asks what was said: it is left out where the labels are what the student wrote.
        against: which teacher's streams the student's are compared with, or ``ITSELF``.
        rows_of: the stream of logits of which the term is a sum over valid rows, each for itself; `of_rows` gives them.
    """

    needs: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()
    of_labels = False
    against: int = 0
    rows_of: str | None = None

    def bind(self, student: Any, teacher: Any | None) -> None:
        """Get to know the two models, before the first step."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The teacher's streams that are compared with, by their full names; known once the term is bound."""
        return self.teacher

    def at(self, share: float) -> None:
        """Learn what share of the training is done, from 0 to 1, before each step."""

    def sees(self, batch: Batch) -> Batch:
        """Return what of a batch the term is about: no noise alone where it compares with what is made of speech.

        Nor the silence after it where a teacher's outputs are stored: they end with the speech.
        """
        if not self.teacher:
            return batch
        return batch.spoken(ends=bool(batch.stored) and self.against != ITSELF)

    def count(self, batch: Batch) -> Tensor:
        """Return what the term's sum is divided by: label tokens, unless a term says otherwise."""
        return batch.n_tokens

    def applies(self, batch: Batch) -> bool:
        """Say whether the term takes part in a batch."""
        return not (self.of_labels and batch.on_policy)

    def forward(self, student: Streams, teacher: Streams, batch: Batch) -> Tensor:
        """Return the term's sum over the batch, a scalar."""
        raise NotImplementedError

    def of_rows(self, student_RV: Tensor, teacher_RV: Tensor | SomeRows | None, labels_R: Tensor) -> Tensor:
        """Return what each row of logits adds to the sum, ``(R,)``, given the teacher's and the labels."""
        raise NotImplementedError


def check_given(term: Term, given: Streams) -> None:
    """Refuse a teacher that lacks what a term compares with; of a folder that is not known before it is loaded.

    Raises:
        ConfigError: with what the teacher gives.
    """
    kinds = {name.rpartition(".")[0] or name for name in given}
    for wanted in term.teacher:
        if wanted not in kinds:
            raise ConfigError(
                f"a loss term of the kind {type(term).__name__} needs the teacher's stream {wanted}, but that teacher "
                f"gives {', '.join(sorted(kinds))}; name another one with teacher.path, or choose loss=transcripts"
            )


def at_least_float32(x: Tensor) -> Tensor:
    """Return a tensor in float32 where it is of a half type, otherwise as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def step_weight(stream: Stream) -> float:
    """Return what a step of a stream counts: its seconds, or 1 where it is a label token."""
    return stream.stride / RATE_HZ if stream.stride else 1.0


def align(source: Stream, target: Stream) -> Tensor:
    """Return a stream's values at the time steps of another, interpolated linearly where the strides differ.

    Both streams' step ``i`` stands at sample ``i * stride``. Shape ``(B, N of target, D of source)``.
    """
    n = target.n_steps
    if source.stride == target.stride:
        missing = n - source.values_BND.shape[1]
        return F.pad(source.values_BND, (0, 0, 0, max(missing, 0)))[:, :n]
    assert source.stride and target.stride
    position_N = torch.arange(n, device=source.values_BND.device) * (target.stride / source.stride)
    last_B1 = (source.lengths_B - 1).clamp(min=0)[:, None]
    low_BN = torch.minimum(position_N.floor().long()[None], last_B1)
    high_BN = torch.minimum(low_BN + 1, last_B1)
    rows_B1 = torch.arange(len(last_B1), device=low_BN.device)[:, None]
    values = at_least_float32(source.values_BND)
    share_BN1 = (position_N[None] - low_BN).clamp(0, 1)[..., None].to(values.dtype)
    return (1 - share_BN1) * values[rows_B1, low_BN] + share_BN1 * values[rows_B1, high_BN]


def nearest(source: Stream, target: Stream) -> Tensor:
    """Return the steps of a stream that are nearest in time to those of another; ``(B, N of target)``."""
    position_N = torch.arange(target.n_steps, device=source.lengths_B.device) * step_samples(target)
    step_N = (position_N / step_samples(source) + 0.5).floor().long()
    return torch.minimum(step_N[None], (source.lengths_B - 1).clamp(min=0)[:, None])


def covered(source: Stream, target: Stream) -> Tensor:
    """Return at which steps of a stream another has something: stored outputs end with the speech; ``(B, N)``."""
    step_N = torch.arange(target.n_steps, device=source.lengths_B.device) * step_samples(target)
    return step_N[None] < source.lengths_B[:, None] * step_samples(source)


def step_samples(stream: Stream) -> int:
    """Return the samples between two steps of a stream; of tokens 1."""
    return stream.stride or 1


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
            "teacher and student have different vocabularies, so nothing can be compared token by token "
            f"({difference(teacher, student)}); choose loss=transcripts, or a student that inherits the teacher's"
        )
