"""Distances between attention maps against an independent computation in float64."""

import numpy as np
import pytest
import torch
from loss_streams import ROWS, labelled, of_depth, randn, stream

from rkd.errors import ConfigError
from rkd.losses import AttentionMaps

FRAMES, TOKENS = [7, 3, 5], [4, 2, 1]


def maps(part, n_layers, n_keys, seed):
    """Return maps of layers from 1, over ``n_keys`` keys, zero beyond the frames, as models give them."""
    made = {}
    lengths = FRAMES if part == "encoder" else TOKENS
    for i in range(1, n_layers + 1):
        scores = randn(3, max(lengths), n_keys, seed=seed + i, scale=2)
        weights = scores.softmax(-1)
        for row, n_frames, n in zip(weights, FRAMES, lengths, strict=True):
            row[:, n_frames:] = 0  # what a teacher with a window of its own gives to the silence is left out
            row[n:] = 7.0  # rubbish
        made[f"attention.{part}.{i}"] = stream(weights, lengths, 640 if part == "encoder" else None)
    return made


@pytest.mark.parametrize("part", ["encoder", "cross"])
@pytest.mark.parametrize("distance", ["kl", "mse"])
@pytest.mark.parametrize("n_keys", [7, 9])
def test_attention_maps(part, distance, n_keys):
    term = AttentionMaps(part, "even", distance)
    term.bind(of_depth(4, 2, 2), of_depth(6, 3, 3))
    ours, theirs = maps(part, 2, 7, 0), maps(part, 3, n_keys, 10)
    expected = 0.0
    for s, t in [(1, 1), (2, 3)]:
        a, b = ours[f"attention.{part}.{s}"], theirs[f"attention.{part}.{t}"]
        for i, n in enumerate(a.lengths_B.tolist()):
            q, p = (x.values_BND[i, :n, : FRAMES[i]].double().numpy() for x in (a, b))
            q, p = q / q.sum(-1, keepdims=True), p / p.sum(-1, keepdims=True)
            distances = (p * np.log(p / q)).sum(-1) if distance == "kl" else ((p - q) ** 2).mean(-1)
            expected += (0.04 if part == "encoder" else 1.0) * distances.sum() / 2
    batch = labelled(ROWS, seconds=4.2)
    assert term(ours, theirs, batch).item() == pytest.approx(expected, rel=1e-4)
    assert term.count(batch).item() == pytest.approx(4.2 if part == "encoder" else 7)
    same = AttentionMaps(part, distance=distance)
    same.bind(of_depth(4, 2, 2), of_depth(4, 2, 2))
    assert same(ours, ours, batch).item() == pytest.approx(0, abs=1e-6)


def test_a_key_that_nobody_looks_at_has_a_finite_gradient():
    weights = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.5, 0.0]]])
    ours = torch.tensor([[[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.1, 0.9, 0.0]]]).requires_grad_()
    for distance in ("kl", "mse"):
        term = AttentionMaps(distance=distance)
        term.bind(of_depth(4, 1), of_depth(4, 1))
        value = term(*({"attention.encoder.1": stream(x, [3], 640)} for x in (ours, weights)), labelled([[5]]))
        value.backward()
        assert torch.isfinite(value) and torch.isfinite(ours.grad).all()


def test_maps_that_cannot_be_compared_are_refused():
    with pytest.raises(ConfigError, match="a step of 640 samples, the teacher's of 320"):
        AttentionMaps().bind(of_depth(4, 2), of_depth(4, 2, stride=320))
    with pytest.raises(ConfigError, match=r"layers 1 to 2 \(student\)"):
        AttentionMaps(layers=[[0, 1]]).bind(of_depth(4, 2), of_depth(4, 2))


def test_both_models_are_asked_for_their_maps():
    asked = []
    student, teacher = of_depth(4, 2), of_depth(4, 2)
    student.provide_attention = teacher.provide_attention = asked.append
    AttentionMaps("cross").bind(student, teacher)
    assert asked == ["cross", "cross"]
