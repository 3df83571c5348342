"""Streams, labels and models that the loss terms' tests share."""

import itertools
from types import SimpleNamespace

import numpy as np
import torch

from rkd.models.base import Stream
from rkd.tokenizer import build_tokenizer

ROWS = [[0, 2, 1, 5], [3, 5], [5]]  # label tokens of three utterances


def randn(*shape, seed=0, scale=1.0):
    return torch.from_numpy(scale * np.random.default_rng(seed).standard_normal(shape)).float()


def stream(values, lengths, stride=None):
    return Stream(values, torch.tensor(lengths), stride)


def labelled(rows, seconds=1.0):
    """Return as much of a batch as the terms look at."""
    labels_BL = torch.full((len(rows), max(map(len, rows))), -100)
    for row, tokens in zip(labels_BL, rows, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    return SimpleNamespace(
        labels_BL=labels_BL, n_tokens=(labels_BL >= 0).sum(), seconds=torch.tensor(seconds), clean_BT=torch.zeros(1, 1),
        on_policy=False,
    )  # fmt: skip


def log_softmax(x):
    x = np.asarray(x, dtype=np.float64)
    return x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)


def ctc_forward(logits_NV, labels, blank):
    """-log likelihood by the forward recursion of Graves et al. 2006, section 4.1, in float64."""
    p_NV = np.exp(log_softmax(logits_NV))
    spaced = [blank, *itertools.chain.from_iterable((token, blank) for token in labels)]
    alpha = np.zeros(len(spaced))
    alpha[:2] = p_NV[0, spaced[:2]]
    for p_V in p_NV[1:]:
        before = alpha.copy()
        for s, token in enumerate(spaced):
            total = before[s] + (before[s - 1] if s else 0.0)
            if s > 1 and token != blank and token != spaced[s - 2]:
                total += before[s - 2]
            alpha[s] = total * p_V[token]
    return -np.log(alpha[-1] + (alpha[-2] if len(spaced) > 1 else 0.0))


def of_depth(width, encoder, decoder=1, stride=640):
    """Return as much of a model as the terms look at; its vocabulary has 8 tokens."""
    return SimpleNamespace(
        width=width, depth={"encoder": encoder, "decoder": decoder}, stride=stride,
        tokenizer=build_tokenizer(["one two three four"]), provide_attention=lambda part: None,
    )  # fmt: skip


def speaks(tokenizer):
    return SimpleNamespace(tokenizer=tokenizer)


def layers(part, n, width, lengths, stride=None, first=0):
    """Return the streams of layers ``first`` to ``n``, with rubbish beyond the lengths."""
    made = {}
    for i in range(first, n + 1):
        values = randn(len(lengths), max(lengths), width, seed=100 * width + i)
        for row, length in zip(values, lengths, strict=True):
            row[length:] = 1e4
        made[f"{part}.{i}"] = stream(values, lengths, stride)
    return made


def valid(one):
    """Return the valid steps of each clip of a stream, in float64."""
    return [row[:n].double().numpy() for row, n in zip(one.values_BND, one.lengths_B.tolist(), strict=True)]
