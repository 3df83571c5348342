"""Rows of targets that the tests of several modules share."""

import torch
from loss_streams import randn

from rkd.targets import Card

TEMPERATURES = [1.0, 2.0, 4.0]
CARD = Card("logits", None, 500, 16, TEMPERATURES)


def peaked(n_rows, n_outputs, seed=0):
    """Logits like a recogniser's: a few tokens high above many others."""
    logits_RV = 2 * randn(n_rows, n_outputs, seed=seed)
    at_R8 = torch.randint(n_outputs, (n_rows, 8), generator=torch.Generator().manual_seed(seed))
    return logits_RV.scatter_add(1, at_R8, 8 + 4 * randn(n_rows, 8, seed=seed + 1))
