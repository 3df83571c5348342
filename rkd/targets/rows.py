"""A row of a teacher's outputs as it lies on disk, and back.

Shapes: R rows, D width of a row, V vocabulary, k kept logits, T temperatures, n draws, and those of codebooks.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rkd.draws import Draws
from rkd.errors import NumericsError
from rkd.models.base import Stream
from rkd.targets.codebooks import encode

LEVELS = 2**12 - 1  # a kept logit is 12 bits: its distance below the row's largest, in steps of the row's own size
ROWS = 256  # of logits at a time


@dataclass(frozen=True)
class Card:
    """What a folder of targets tells of its rows.

    Attributes:
        stream: whose they are.
        stride: samples between two rows; None: a row is a label token.
        n_outputs: of a row.
        k: logits kept of each, even; all of no more; None: all, as of a hidden layer.
        temperatures: at which it is known what all other logits weigh; of draws the one that they are made at.
        draws: tokens drawn of a vocabulary of more than k, instead of the k largest; None: none.
        codebooks: bytes a row of a hidden layer; None: its values are kept.
    """

    stream: str
    stride: int | None
    n_outputs: int
    k: int | None
    temperatures: list[float]
    draws: int | None = None
    codebooks: int | None = None

    @property
    def row_type(self) -> np.dtype:
        """How a row lies on disk: 382 bytes for k = 128 of Whisper's 51,865 tokens at three temperatures."""
        if self.codebooks is not None:
            return np.dtype([("codes", "u1", (self.codebooks,))])
        if self.k is None or self.k >= self.n_outputs:
            return np.dtype([("values", "<f2", (self.n_outputs,))])
        if self.draws is not None:
            return np.dtype([("entropy", "<f4"), ("drawn", "<u2" if self.n_outputs <= 2**16 else "<u4", (self.draws,))])
        return np.dtype([
            ("largest", "<f4"), ("step", "<f4"), ("log_rest", "<f4", (len(self.temperatures),)),
            # Which tokens, in order (Elias 1974, Fano 1971): the lower byte of each, and the rest of the number in
            # unary.
            ("low", "u1", (self.k,)), ("high", "u1", (-(-(self.k + (self.n_outputs >> 8)) // 8),)),
            ("below", "u1", (3 * self.k // 2,)),
        ])  # fmt: skip


def pack(values_RD: Tensor, card: Card, chance_R: Tensor | None = None, book_CKd: Tensor | None = None) -> np.ndarray:
    """Return rows as they lie on disk.

    Args:
        chance_R: a number between 0 and 1 for each row, where tokens are drawn.
        book_CKd: centroids, where numbers of such are kept; see `rkd.targets.codebooks`.

    Raises:
        NumericsError: a value that is kept as it is lies beyond float16.
    """
    names = card.row_type.names or ()
    if "codes" in names:
        assert book_CKd is not None
        rows = np.empty(len(values_RD), card.row_type)
        rows["codes"] = encode(values_RD, book_CKd).cpu().numpy()
        return rows
    if "values" in names:
        return pack_all(values_RD, card)
    if "drawn" in names:
        assert chance_R is not None
        return pack_drawn(values_RD, card, chance_R)
    return pack_largest(values_RD.float(), card)


def pack_all(values_RD: Tensor, card: Card) -> np.ndarray:
    """Return rows of which every value is kept, in float16."""
    rows = np.empty(len(values_RD), card.row_type)
    half_RD = values_RD.half()
    if not half_RD.isfinite().all():
        raise NumericsError(
            f"the teacher's {card.stream} reaches {float(values_RD.abs().amax()):.3g}, which float16 does not hold; "
            "set targets.live=true"
        )
    rows["values"] = half_RD.cpu().numpy()
    return rows


def pack_largest(logits_RV: Tensor, card: Card) -> np.ndarray:
    """Return rows of which the k largest logits are kept, and what all others weigh."""
    assert card.k is not None
    rows = np.empty(len(logits_RV), card.row_type)
    index_Rk = logits_RV.topk(card.k, dim=-1).indices.sort(-1).values
    kept_Rk = logits_RV.gather(-1, index_Rk)
    others_RV = logits_RV.scatter(-1, index_Rk, -torch.inf)
    largest_R1 = kept_Rk.amax(-1, keepdim=True)
    step_R1 = ((largest_R1 - kept_Rk.amin(-1, keepdim=True)) / LEVELS).clamp(min=1e-12)
    below_Rk = ((largest_R1 - kept_Rk) / step_R1).round().int().cpu().numpy()
    rows["largest"], rows["step"] = largest_R1[:, 0].cpu().numpy(), step_R1[:, 0].cpu().numpy()
    rest = [(others_RV / t).logsumexp(-1) - (logits_RV / t).logsumexp(-1) for t in card.temperatures]
    rows["log_rest"] = torch.stack(rest, -1).cpu().numpy()
    index = index_Rk.cpu().numpy()
    rows["low"] = index & 255
    ones = np.zeros((len(rows), 8 * rows["high"].shape[1]), np.uint8)
    np.put_along_axis(ones, (index >> 8) + np.arange(card.k), 1, axis=1)
    rows["high"] = np.packbits(ones, axis=1)
    even, odd = below_Rk[:, ::2], below_Rk[:, 1::2]
    rows["below"] = np.stack([even >> 4, (even & 15) << 4 | odd >> 8, odd & 255], -1).reshape(len(rows), -1)
    return rows


def unpack_largest(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return which tokens were kept ``(R, k)``, their logits ``(R, k)``, and the log-weights of the rest ``(R, T)``."""
    k = rows["low"].shape[1]
    ones = np.nonzero(np.unpackbits(rows["high"], axis=1))[1].reshape(len(rows), k)
    index_Rk = ((ones - np.arange(k)) << 8) + rows["low"]
    a, b, c = np.moveaxis(rows["below"].reshape(len(rows), k // 2, 3).astype(np.int32), -1, 0)
    below_Rk = np.stack([a << 4 | b >> 4, (b & 15) << 8 | c], -1).reshape(len(rows), k)
    return index_Rk, rows["largest"][:, None] - below_Rk * rows["step"][:, None], rows["log_rest"].copy()


def pack_drawn(logits_RV: Tensor, card: Card, chance_R: Tensor) -> np.ndarray:
    """Return rows of tokens drawn from ``p = softmax(logits / T)``, and the entropy of p.

    The share of the draws that are a token is an unbiased estimate of its probability, and so is a cross-entropy with
    the draws (Anshumann et al. 2025, Sparse Logit Sampling, section 3). The draws of a row are systematic (Kitagawa
    1996), at the quantiles ``(i + chance) / n`` of p: a token comes n p times, rounded down or up, so that the estimate
    varies less than that of independent draws.
    """
    assert card.draws is not None
    rows = np.empty(len(logits_RV), card.row_type)
    p_RV = (logits_RV.double() / card.temperatures[0]).softmax(-1)
    rows["entropy"] = torch.special.entr(p_RV).sum(-1).float().cpu().numpy()
    upto_RV = p_RV.cumsum(-1)
    draw_n = torch.arange(card.draws, device=p_RV.device)
    at_Rn = (draw_n + chance_R.to(p_RV)[:, None]) / card.draws * upto_RV[:, -1:]
    drawn_Rn = torch.searchsorted(upto_RV, at_Rn, right=True).clamp(max=card.n_outputs - 1)
    rows["drawn"] = drawn_Rn.cpu().numpy()
    return rows


def stored_rows(stream: Stream, card: Card, draws: Draws, book_CKd: Tensor | None = None) -> np.ndarray:
    """Return the valid rows of a stream as they lie on disk, clip after clip; what is drawn belongs to the clip."""
    valid_BN = stream.mask()
    chances_R = torch.from_numpy(draws.uniforms("targets", stream.n_steps))[valid_BN.cpu()]
    parts: Sequence[Tensor] = stream.rows(valid_BN).split(ROWS)
    chances = chances_R.split(ROWS)
    return np.concatenate([pack(stream.project(p), card, c, book_CKd) for p, c in zip(parts, chances, strict=True)])
