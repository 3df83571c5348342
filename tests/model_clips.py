"""Waveforms and labels for the tests of models."""

import numpy as np
import torch


def clip(n, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy((0.1 * rng.standard_normal(n) * np.sin(np.arange(n) / 900)).astype(np.float32))


def padded(clips, extra=0):
    """Return clips as a batch with rubbish beyond their ends."""
    batch_BT = torch.full((len(clips), max(map(len, clips)) + extra), 0.5)
    for row, x_T in zip(batch_BT, clips, strict=True):
        row[: len(x_T)] = x_T
    return batch_BT, torch.tensor([len(x_T) for x_T in clips])


def label_batch(rows):
    labels_BL = torch.full((len(rows), max(map(len, rows))), -100)
    for row, tokens in zip(labels_BL, rows, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    return labels_BL
