"""A row of a teacher's outputs as it lies on disk, and back.

Shapes: R rows, D width of a row, V vocabulary, k kept logits, T temperatures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rkd.models.base import Stream

LEVELS = 2**12 - 1  # a kept logit is 12 bits: its distance below the row's largest, in steps of the row's own size
ROWS = 256  # of logits at a time


def row_type(n_outputs: int, k: int, n_temperatures: int) -> np.dtype:
    """Return how a row lies on disk: 382 bytes for k = 128 of Whisper's 51,865 tokens at three temperatures."""
    if k >= n_outputs:
        return np.dtype([("logits", "<f2", (n_outputs,))])
    return np.dtype([
        ("largest", "<f4"), ("step", "<f4"), ("log_rest", "<f4", (n_temperatures,)),
        # Which tokens, in order (Elias 1974, Fano 1971): the lower byte of each, and the rest of the number in unary.
        ("low", "u1", (k,)), ("high", "u1", (-(-(k + (n_outputs >> 8)) // 8),)),
        ("below", "u1", (3 * k // 2,)),
    ])  # fmt: skip


def pack(logits_RV: Tensor, k: int, temperatures: Sequence[float]) -> np.ndarray:
    """Return rows of logits as they lie on disk.

    Args:
        k: even.
        temperatures: at which the rest's weight is kept.
    """
    kind = row_type(logits_RV.shape[1], k, len(temperatures))
    rows = np.empty(len(logits_RV), kind)
    if "logits" in (kind.names or ()):
        rows["logits"] = logits_RV.float().cpu().numpy()
        return rows
    logits_RV = logits_RV.float()
    index_Rk = logits_RV.topk(k, dim=-1).indices.sort(-1).values
    kept_Rk = logits_RV.gather(-1, index_Rk)
    others_RV = logits_RV.scatter(-1, index_Rk, -torch.inf)
    largest_R1 = kept_Rk.amax(-1, keepdim=True)
    step_R1 = ((largest_R1 - kept_Rk.amin(-1, keepdim=True)) / LEVELS).clamp(min=1e-12)
    below_Rk = ((largest_R1 - kept_Rk) / step_R1).round().int().cpu().numpy()
    rows["largest"], rows["step"] = largest_R1[:, 0].cpu().numpy(), step_R1[:, 0].cpu().numpy()
    rest = [(others_RV / t).logsumexp(-1) - (logits_RV / t).logsumexp(-1) for t in temperatures]
    rows["log_rest"] = torch.stack(rest, -1).cpu().numpy()
    index = index_Rk.cpu().numpy()
    rows["low"] = index & 255
    ones = np.zeros((len(rows), 8 * rows["high"].shape[1]), np.uint8)
    np.put_along_axis(ones, (index >> 8) + np.arange(k), 1, axis=1)
    rows["high"] = np.packbits(ones, axis=1)
    even, odd = below_Rk[:, ::2], below_Rk[:, 1::2]
    rows["below"] = np.stack([even >> 4, (even & 15) << 4 | odd >> 8, odd & 255], -1).reshape(len(rows), -1)
    return rows


def stored_rows(stream: Stream, k: int, temperatures: Sequence[float]) -> tuple[int, np.ndarray]:
    """Return the size of the vocabulary, and the valid rows of a stream as they lie on disk, clip after clip."""
    parts = stream.rows(stream.mask()).split(ROWS)
    return stream.n_outputs, np.concatenate([pack(stream.project(part), k, temperatures) for part in parts])


def unpack(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return which tokens were kept ``(R, k)``, their logits ``(R, k)``, and the log-weights of the rest ``(R, T)``."""
    k = rows["low"].shape[1]
    ones = np.nonzero(np.unpackbits(rows["high"], axis=1))[1].reshape(len(rows), k)
    index_Rk = ((ones - np.arange(k)) << 8) + rows["low"]
    a, b, c = np.moveaxis(rows["below"].reshape(len(rows), k // 2, 3).astype(np.int32), -1, 0)
    below_Rk = np.stack([a << 4 | b >> 4, (b & 15) << 8 | c], -1).reshape(len(rows), k)
    return index_Rk, rows["largest"][:, None] - below_Rk * rows["step"][:, None], rows["log_rest"].copy()
