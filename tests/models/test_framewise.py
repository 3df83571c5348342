"""CTC labels read off their frames: the best path, and prefix beam search against all alignments."""

# Shapes: N steps, V vocabulary.

import itertools
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rkd.models.framewise import collapse, prefix_beam_search


@pytest.mark.parametrize("path, expected", [
    ([], []), ([9, 9], []), ([1, 1, 9, 1, 2, 2, 9], [1, 1, 2]), ([1, 2, 1], [1, 2, 1]), ([9, 1, 9, 9, 1], [1, 1]),
])  # fmt: skip
def test_collapse(path, expected):
    assert collapse(path, blank=9) == expected


def label_probabilities(log_probs_NV, blank):
    """Sum the probabilities of all V^N alignments by the labels that they collapse to."""
    n, v = log_probs_NV.shape
    totals = defaultdict(float)
    for path in itertools.product(range(v), repeat=n):
        labels = tuple(token for token, _ in itertools.groupby(path) if token != blank)
        totals[labels] += float(np.exp(sum(log_probs_NV[i, token] for i, token in enumerate(path))))
    return totals


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.sampled_from([0, 2, 3]), st.floats(0.3, 3.0))
def test_a_wide_beam_finds_the_most_probable_labels(seed, n, blank, sharpness):
    logits = sharpness * np.random.default_rng(seed).standard_normal((n, 4))
    log_probs_NV = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    totals = label_probabilities(log_probs_NV, blank)
    found = prefix_beam_search(torch.from_numpy(log_probs_NV), blank, beams=1000)
    assert totals[tuple(found)] == pytest.approx(max(totals.values()), rel=1e-9)


def test_beam_search_sums_alignments_where_the_best_path_does_not():
    # The best path is blank, blank (0.36); "0" has 0.24 + 0.24 + 0.16 = 0.64.
    log_probs_NV = torch.tensor([[0.4, 0.6], [0.4, 0.6]]).log()
    assert collapse(log_probs_NV.argmax(-1).tolist(), 1) == []
    assert prefix_beam_search(log_probs_NV, 1, beams=2) == [0]


def test_a_repeated_label_needs_a_blank_between():
    sharp = torch.full((3, 3), -20.0)
    sharp[[0, 1, 2], [0, 2, 0]] = -1e-6
    assert prefix_beam_search(sharp, 2, beams=4) == [0, 0]
    sharp = torch.full((3, 3), -20.0)
    sharp[:, 0] = -1e-6
    assert prefix_beam_search(sharp, 2, beams=4) == [0]
