"""Distances between hidden layers against independent computations in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_streams import ROWS, labelled, layers, of_depth, randn, stream, valid

from rkd.errors import ConfigError
from rkd.losses import Hidden
from rkd.losses.hidden import cka, correlation


def cosine(x, y):
    return (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)


def correlation_by_hand(x, y):
    """Zbontar et al. 2021, equation 1, over the frames of an utterance, divided by the width."""
    x, y = ((a - a.mean(0)) / np.sqrt(a.var(0) + 1e-5) for a in (x, y))
    total = 0.0
    for i in range(x.shape[1]):
        for j in range(y.shape[1]):
            c = (x[:, i] * y[:, j]).mean()
            total += (1 - c) ** 2 if i == j else 0.005 * c**2
    return total / x.shape[1]


def cka_by_hand(x, y):
    """Kornblith et al. 2019: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) of linear kernels, the other way to write it."""
    n = len(x)
    h = np.eye(n) - 1 / n
    k, m = h @ (x @ x.T) @ h, h @ (y @ y.T) @ h
    return 1 - np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))


DISTANCES = {  # of an utterance: the sum over its frames
    "l1": lambda x, y: np.abs(x - y).mean(-1).sum(),
    "mse": lambda x, y: ((x - y) ** 2).mean(-1).sum(),
    "cosine": lambda x, y: (1 - cosine(x, y)).sum(),
    "l1_cosine": lambda x, y: (np.abs(x - y).mean(-1) + 0.5 * np.log(1 + np.exp(-cosine(x, y)))).sum(),
    "correlation": lambda x, y: len(x) * correlation_by_hand(x, y),
    "cka": lambda x, y: len(x) * cka_by_hand(x, y),
}


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("widths", [(6, 6), (4, 6)])
@pytest.mark.parametrize(
    "chosen, pairs", [("even", [(1, 1), (2, 5)]), ("last", [(1, 5), (2, 5)]), ([[0, 2]], [(0, 2)])]
)
def test_hidden(distance, widths, chosen, pairs):
    term = Hidden("encoder", chosen, distance, cosine_weight=0.5)
    term.bind(of_depth(widths[0], 2), of_depth(widths[1], 5))
    assert len(term.projections) == (0 if widths[0] == widths[1] or distance == "cka" else len(pairs))
    lengths = [7, 5]
    ours = layers("hidden.encoder", 2, widths[0], lengths, 640)
    theirs = layers("hidden.encoder", 5, widths[1], lengths, 640)
    expected = 0.0
    for i, (s, t) in enumerate(pairs):
        for x, y in zip(valid(ours[f"hidden.encoder.{s}"]), valid(theirs[f"hidden.encoder.{t}"]), strict=True):
            if len(term.projections):
                linear = term.projections[i]
                x = x @ linear.weight.detach().double().numpy().T + linear.bias.detach().double().numpy()
            expected += 640 / 16000 * DISTANCES[distance](x, y) / len(pairs)  # per second, mean over the pairs
    batch = labelled(ROWS, seconds=4.2)
    assert term(ours, theirs, batch).item() == pytest.approx(expected, rel=1e-4)
    assert term.count(batch).item() == pytest.approx(4.2)


@pytest.mark.parametrize("distance", DISTANCES)
def test_hidden_of_the_decoder(distance):
    """Per label token: a step counts one."""
    term = Hidden("decoder", [[0, 2], [1, 0]], distance, cosine_weight=0.5)
    term.bind(of_depth(4, 1, 1), of_depth(4, 1, 2))
    lengths = [6, 4, 3]
    ours = layers("hidden.decoder", 1, 4, lengths)
    theirs = {name: stream(randn(3, 6, 4, seed=9 + i), lengths) for i, name in enumerate(
        f"hidden.decoder.{i}" for i in range(3))}  # fmt: skip
    expected = sum(
        DISTANCES[distance](x, y) / 2
        for s, t in [(0, 2), (1, 0)]
        for x, y in zip(valid(ours[f"hidden.decoder.{s}"]), valid(theirs[f"hidden.decoder.{t}"]), strict=True)
    )
    assert term(ours, theirs, labelled(ROWS)).item() == pytest.approx(float(expected), rel=1e-4)
    assert term.count(labelled(ROWS)) == 7 and term.needs == term.teacher == ("hidden.decoder",)


EVERYWHERE = torch.ones(1, 12, dtype=torch.bool)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_the_laws_of_cka(seed, scale):
    """The same for a rotation, a scale and a shift of either side; zero for equal frames, between 0 and 1 otherwise."""
    x, y = randn(1, 12, 4, seed=seed).double(), randn(1, 12, 6, seed=seed + 1).double()
    rotation = torch.linalg.qr(randn(4, 4, seed=seed + 2).double()).Q
    value = cka(x, y, EVERYWHERE).item()
    assert 0 <= value <= 1
    assert cka(scale * x @ rotation + 3.0, y, EVERYWHERE).item() == pytest.approx(value, abs=1e-9)
    assert cka(scale * x @ rotation, x, EVERYWHERE).item() == pytest.approx(0, abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.floats(0.5, 10))
def test_the_laws_of_correlation(seed, scale):
    """The same for a scale and a shift of any feature; nearly zero for equal features that are independent."""
    x, y = randn(1, 12, 4, seed=seed).double(), randn(1, 12, 4, seed=seed + 1).double()
    value = correlation(x, y, EVERYWHERE).item()
    assert correlation(scale * x - 3.0, y, EVERYWHERE).item() == pytest.approx(value, abs=1e-3)
    independent = torch.linalg.qr(torch.cat([torch.ones(12, 1).double(), x[0]], dim=1)).Q[None, :, 1:] * 12**0.5
    assert correlation(independent, scale * independent, EVERYWHERE).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("distance", ["correlation", "cka", "cosine"])
def test_an_utterance_of_one_frame_has_a_finite_gradient(distance):
    term = Hidden(distance=distance)
    term.bind(of_depth(4, 1), of_depth(4, 1))
    values = randn(1, 1, 4).requires_grad_()
    term(
        {"hidden.encoder.1": stream(values, [1], 640)}, layers("hidden.encoder", 1, 4, [1], 640), labelled([[5]])
    ).backward()
    assert torch.isfinite(values.grad).all()


@pytest.mark.parametrize("chosen", [[[3, 0]], [[0, 6]]])
def test_layers_that_are_not_there_are_refused(chosen):
    with pytest.raises(ConfigError, match=r"layers 0 to 2 \(student\) and 0 to 5 \(teacher\)"):
        Hidden("encoder", chosen).bind(of_depth(4, 2), of_depth(4, 5))
    with pytest.raises(ConfigError, match="even, last or a list"):
        Hidden("encoder", "evn").bind(of_depth(4, 2), of_depth(4, 5))
    with pytest.raises(ConfigError, match="expected l1, mse"):
        Hidden(distance="l3")
