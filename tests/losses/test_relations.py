"""Relations against independent computations in float64."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_streams import labelled, layers, of_depth, randn, stream, valid

from rkd.losses import Relations

LENGTHS = [7, 3, 5, 1]
BATCH = labelled([[0, 5], [5], [3, 5], [5]], seconds=0.64)


def bound(*args, **kwargs):
    term = Relations(*args, **kwargs)
    term.bind(of_depth(4, 2), of_depth(6, 5))
    return term


@pytest.mark.parametrize(
    "chosen, pairs", [("even", [(1, 1), (2, 5)]), ("last", [(1, 5), (2, 5)]), ([[0, 0]], [(0, 0)])]
)
def test_between_frames(chosen, pairs):
    """Tung & Mori 2019, equation 4, with the frames of an utterance for the images of a batch."""
    term = bound(layers=chosen)
    ours, theirs = layers("hidden.encoder", 2, 4, LENGTHS, 640), layers("hidden.encoder", 5, 6, LENGTHS, 640)
    expected = 0.0
    for s, t in pairs:
        for x, y in zip(valid(ours[f"hidden.encoder.{s}"]), valid(theirs[f"hidden.encoder.{t}"]), strict=True):
            of_pairs = []
            for i, j in itertools.product(range(len(x)), repeat=2):
                a, b = (z[i] @ z[j] / np.linalg.norm(z[i]) / np.linalg.norm(z[j]) for z in (x, y))
                of_pairs.append((a - b) ** 2)
            expected += 0.04 * len(x) * np.mean(of_pairs) / len(pairs)
    assert term(ours, theirs, BATCH).item() == pytest.approx(expected, rel=1e-5)
    assert term.count(BATCH).item() == pytest.approx(0.64)


def test_between_utterances():
    """RKD-D, Park et al. 2019, equations 4 to 7."""
    term = bound("decoder", [[1, 1]], "utterances")
    ours, theirs = layers("hidden.decoder", 1, 4, LENGTHS), layers("hidden.decoder", 1, 6, LENGTHS)
    found = []
    for one in (ours, theirs):
        pooled = [x.mean(0) for x in valid(one["hidden.decoder.1"])]
        distances = np.array([np.linalg.norm(a - b) for a, b in itertools.combinations(pooled, 2)])
        found.append(distances / distances.mean())
    difference = np.abs(found[0] - found[1])
    huber = np.where(difference <= 1, 0.5 * difference**2, difference - 0.5).mean()
    assert term(ours, theirs, BATCH).item() == pytest.approx(sum(LENGTHS) * huber, rel=1e-5)
    assert term.count(BATCH) == 6


def test_an_utterance_alone_has_no_relations_to_others():
    term = bound(between="utterances")
    ours, theirs = layers("hidden.encoder", 2, 4, [7], 640), layers("hidden.encoder", 5, 6, [7], 640)
    ours["hidden.encoder.1"].values_BND.requires_grad_()
    value = term(ours, theirs, BATCH)
    value.backward()
    assert value.item() == 0 and (ours["hidden.encoder.1"].values_BND.grad == 0).all()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 10))
@pytest.mark.parametrize("between", ["frames", "utterances"])
def test_a_rotation_and_a_scale_change_no_relation(between, seed, scale):
    term = Relations(layers=[[1, 1]], between=between)
    term.bind(of_depth(4, 1), of_depth(4, 1))
    values, rotation = randn(4, 7, 4, seed=seed), torch.linalg.qr(randn(4, 4, seed=seed + 1)).Q
    ours = {"hidden.encoder.1": stream(values, LENGTHS, 640)}
    theirs = {"hidden.encoder.1": stream(scale * values @ rotation, LENGTHS, 640)}
    assert term(ours, theirs, BATCH).item() == pytest.approx(0, abs=1e-6)
    assert term(ours, {"hidden.encoder.1": stream(values.flip(0), LENGTHS, 640)}, BATCH).item() > 1e-3
