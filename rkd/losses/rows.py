"""Terms that are sums over rows of logits, for several at once and without all of the logits at any time.

Shapes: B batch, N label tokens, R rows (the valid tokens of a batch), r those of a part, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rkd.data.batches import Batch
from rkd.losses.base import Term
from rkd.models.base import Stream

PART = 2**22  # logits at a time: 16 MiB in float32, of which a divergence holds a few; on a CPU more are no faster


def sums_over_rows(
    terms: Mapping[str, Term], student: Stream, theirs: Mapping[str, Stream], batch: Batch, part: int = PART
) -> dict[str, Tensor]:
    """Return the sum of each term over the label tokens of a batch, as its ``forward`` would.

    Student's and teachers' logits are computed once for all terms, and those of padding not at all. Where they are many
    it is a part at a time, and once more for the gradient (Chen et al. 2016), so that memory does not grow with them.

    Args:
        theirs: the stream that a term compares with, by the term's name.
        part: logits at a time.
    """
    valid_BN = student.mask()
    ours_R, labels_R = student.rows(valid_BN), batch.labels_BL[valid_BN]
    spoken_R = batch.spoken_B[:, None].expand_as(valid_BN)[valid_BN]
    # Several terms may compare with one teacher.
    teachers = {id(stream): (stream, stream.rows(valid_BN)) for stream in theirs.values()}

    def sums(start: int, ours_r: Tensor) -> Tensor:
        part_R = slice(start, start + len(ours_r))
        student_rV, found = student.project(ours_r), []
        taught = {key: stream.project(rows[part_R]) for key, (stream, rows) in teachers.items()}
        for name, term in terms.items():
            teacher_rV = taught[id(theirs[name])] if name in theirs else None
            values_r = term.of_rows(student_rV, teacher_rV, labels_R[part_R])
            found.append(torch.where(spoken_R[part_R], values_r, 0.0).sum() if term.teacher else values_r.sum())
        return torch.stack(found)

    size = max(1, part // student.n_outputs)
    if len(ours_R) <= size:
        total = sums(0, ours_R)
    else:
        parts = zip(range(0, len(ours_R), size), ours_R.split(size), strict=True)
        total = torch.stack([checkpoint(sums, start, rows, use_reentrant=False) for start, rows in parts]).sum(0)
    return dict(zip(terms, total, strict=True))
