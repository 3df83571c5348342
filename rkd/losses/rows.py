"""Terms that are sums over rows of logits, for several at once and without all of the logits at any time.

Shapes: B batch, N label tokens, D width, R rows (the valid tokens of a batch), r those of a part, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rkd.data.batches import Batch
from rkd.losses.base import Term, align
from rkd.models.base import Projected, Stream
from rkd.targets import TopK, TopRows

PART = 2**24  # logits at a time: 64 MiB in float32, of which a divergence holds a few


def sums_over_rows(
    terms: Mapping[str, Term], student: Projected, theirs: Mapping[str, Stream], batch: Batch, part: int = PART
) -> dict[str, Tensor]:
    """Return the sum of each term over the label tokens of a batch, as its ``forward`` would.

    Student's and teachers' logits are computed once for all terms, and those of padding not at all. Where they are many
    it is a part at a time, and once more for the gradient (Chen et al. 2016), so that memory does not grow with them.

    Args:
        theirs: the stream that a term compares with, by the term's name.
        part: logits at a time.
    """
    valid_BN = student.mask()
    hidden_RD, labels_R = student.hidden_BND[valid_BN], batch.labels_BL[valid_BN]
    spoken_R = batch.spoken_B[:, None].expand_as(valid_BN)[valid_BN]
    # Several terms may compare with one teacher.
    teachers = {id(stream): (stream, rows_of(stream, student, valid_BN)) for stream in theirs.values()}

    def sums(start: int, hidden_rD: Tensor) -> Tensor:
        part_R = slice(start, start + len(hidden_rD))
        student_rV, found = student.project(hidden_rD), []
        taught = {key: logits_of(stream, rows[part_R]) for key, (stream, rows) in teachers.items()}
        for name, term in terms.items():
            teacher_rV = taught[id(theirs[name])] if name in theirs else None
            values_r = term.of_rows(student_rV, teacher_rV, labels_R[part_R])
            found.append(torch.where(spoken_R[part_R], values_r, 0.0).sum() if term.teacher else values_r.sum())
        return torch.stack(found)

    size = max(1, part // student.n_outputs)
    if len(hidden_RD) <= size:
        total = sums(0, hidden_RD)
    else:
        parts = zip(range(0, len(hidden_RD), size), hidden_RD.split(size), strict=True)
        total = torch.stack([checkpoint(sums, start, rows, use_reentrant=False) for start, rows in parts]).sum(0)
    return dict(zip(terms, total, strict=True))


def rows_of(stream: Stream, student: Projected, valid_BN: Tensor) -> Tensor | TopRows:
    """Return what stands in a stream where the student has valid rows: logits, or what the output layer is given."""
    if isinstance(stream, TopK):
        return stream.rows(valid_BN)
    if isinstance(stream, Projected):
        return stream.hidden_BND[valid_BN]
    return align(stream, student)[valid_BN]


def logits_of(stream: Stream, rows: Tensor | TopRows) -> Tensor | TopRows:
    """Return the logits of rows that `rows_of` gave."""
    return stream.project(rows) if isinstance(stream, Projected) and isinstance(rows, Tensor) else rows
