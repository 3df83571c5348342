"""Hidden layers in a byte for several features: product quantisation (Jégou, Douze and Schmid 2011).

A row is cut into C pieces of equal length, and of each piece the number of the nearest of 256 centroids is stored.
Hidden layers of self-supervised teachers have been distilled from 8 to 32 such numbers a frame (Guo et al. 2023,
"Predicting multi-codebook vector quantization indexes for knowledge distillation").

Shapes: R rows, D width of a row, C pieces, K centroids, d = D / C features of a piece.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rkd.draws import hash64

CENTROIDS = 256
LEARNED_FROM = 64 * CENTROIDS  # rows; k-means needs some 40 a centroid
ROUNDS = 15  # of k-means, after which the error hardly changes
_BLOCK = 2**24  # distances held at once


def learn(values_RD: Tensor, n_codebooks: int, name: str) -> Tensor:
    """Return centroids ``(C, K, d)`` by k-means of each piece (Lloyd 1982), from centroids that are rows.

    Args:
        name: of what the rows are, which the choice of those depends on.
    """
    piece_CRd = pieces(values_RD.float(), n_codebooks)
    generator = torch.Generator().manual_seed(hash64(f"codebooks/{name}") >> 1)
    order_R = torch.randperm(len(values_RD), generator=generator).to(values_RD.device)
    book_CKd = piece_CRd[:, order_R[torch.arange(CENTROIDS, device=order_R.device) % len(order_R)]]
    for _ in range(ROUNDS):
        code_CR = nearest(piece_CRd, book_CKd)
        sum_CKd = torch.zeros_like(book_CKd).scatter_add_(1, code_CR[..., None].expand_as(piece_CRd), piece_CRd)
        count_CK = torch.zeros_like(book_CKd[..., 0]).scatter_add_(1, code_CR, torch.ones_like(piece_CRd[..., 0]))
        # A centroid that is nearest to nothing stays where it is.
        book_CKd = torch.where(count_CK[..., None] > 0, sum_CKd / count_CK[..., None].clamp(min=1), book_CKd)
    return book_CKd


def encode(values_RD: Tensor, book_CKd: Tensor) -> Tensor:
    """Return the numbers of the centroids, uint8 ``(R, C)``."""
    return nearest(pieces(values_RD.float(), len(book_CKd)), book_CKd).T.to(torch.uint8)


def decode(code_RC: Tensor, book_CKd: Tensor) -> Tensor:
    """Return rows ``(R, D)`` made of the centroids with these numbers."""
    return book_CKd[torch.arange(len(book_CKd)), code_RC.long()].flatten(1)


def pieces(values_RD: Tensor, n_codebooks: int) -> Tensor:
    """Return rows cut into pieces, ``(C, R, d)``."""
    return values_RD.unflatten(1, (n_codebooks, -1)).transpose(0, 1)


def nearest(piece_CRd: Tensor, book_CKd: Tensor) -> Tensor:
    """Return for each piece which centroid is nearest, ``(C, R)``."""
    size = max(1, _BLOCK // (len(book_CKd) * CENTROIDS))
    middle_C1d = book_CKd.mean(1, keepdim=True)  # far from zero the differences would drown in rounding
    book_CKd = book_CKd - middle_C1d
    # |x - c|^2 without |x|^2, which all centroids have in common.
    square_C1K = (book_CKd**2).sum(-1)[:, None]
    with torch.autocast(piece_CRd.device.type, enabled=False):
        parts = [
            (square_C1K - 2 * (x_CRd - middle_C1d) @ book_CKd.mT).argmin(-1) for x_CRd in piece_CRd.split(size, dim=1)
        ]
    return torch.cat(parts, dim=1)
