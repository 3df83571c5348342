"""Sums over rows of logits: equal to each term alone, in value and in gradient, however many are made at a time."""

# B batch, L label tokens, D width, R rows, V vocabulary

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_streams import log_softmax, randn
from torch import nn

from rkd.losses import CrossEntropy, SoftTokens
from rkd.losses.rows import sums_over_rows
from rkd.models.base import Projected, Stream

D, V = 5, 11


class Layer(nn.Linear):
    """An output layer that counts the rows of every call."""

    def __init__(self, seed):
        super().__init__(D, V)
        self.weight.data, self.bias.data, self.calls = randn(V, D, seed=seed), randn(V, seed=seed + 1), []

    def forward(self, rows_RD):
        self.calls.append(rows_RD[..., 0].numel())
        return super().forward(rows_RD)


def made(lengths, spoken=None):
    """Return a batch, the layers of student and teacher, and a function that gives their streams."""
    n = max(lengths)
    labels_BL = torch.full((len(lengths), n), -100)
    for row, length in enumerate(lengths):
        labels_BL[row, :length] = torch.arange(length) % V
    batch = SimpleNamespace(
        labels_BL=labels_BL, spoken_B=torch.tensor(spoken or [True] * len(lengths)),
    )  # fmt: skip
    lengths_B = torch.tensor(lengths)
    student, teacher = Layer(1), Layer(4).requires_grad_(False)
    hidden_BLD = randn(len(lengths), n, D, seed=7).requires_grad_()
    theirs_BLD = randn(len(lengths), n, D, seed=8)

    def streams():
        return Projected(hidden_BLD, student, V, lengths_B), Projected(theirs_BLD, teacher, V, lengths_B)

    return batch, student, hidden_BLD, teacher, streams


def terms():
    return {"labels": CrossEntropy(label_smoothing=0.1), "soft": SoftTokens(temperature=2.0), "js": SoftTokens("js")}


def plain(batch, streams):
    """Each term by itself, of all logits."""
    ours, theirs = (Stream(s.values_BND, s.lengths_B, None) for s in streams())
    found = {}
    for name, term in terms().items():
        mine = ours.where(batch.spoken_B) if term.teacher else ours
        found[name] = term({"logits": mine}, {"logits": theirs}, batch)
    return found


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=4),
    st.integers(1, 8), st.booleans(),
)  # fmt: skip
def test_equal_to_each_term_alone(clips, rows_at_a_time, projected):
    lengths, spoken = zip(*clips, strict=True)
    batch, layer, hidden_BLD, _, streams = made(list(lengths), list(spoken))
    expected = plain(batch, streams)
    weights = {"labels": 1.0, "soft": 0.7, "js": 1.3}
    wanted = torch.autograd.grad(sum(weights[n] * x for n, x in expected.items()), [hidden_BLD, *layer.parameters()])
    ours, theirs = streams()
    if not projected:  # as of a teacher whose family makes its logits at once
        theirs = Stream(theirs.values_BND, theirs.lengths_B, None)
    found = sums_over_rows(terms(), ours, {"soft": theirs, "js": theirs}, batch, part=rows_at_a_time * V)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-5)
    got = torch.autograd.grad(sum(weights[n] * x for n, x in found.items()), [hidden_BLD, *layer.parameters()])
    for a, b in zip(got, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_gradient_equals_float64s_over_a_large_vocabulary():
    """Of 0.3 cross-entropy + 0.7 T^2 KL(p || q): 0.3 (q_1 - y) + 0.7 T (q - p) for each row's logits, by hand."""
    n_outputs, width, lengths, t = 51865, 16, [5, 2, 4], 2.0
    labels_BL = torch.full((3, 5), -100)
    for row, length in enumerate(lengths):
        labels_BL[row, :length] = torch.arange(length) * 9973
    batch = SimpleNamespace(labels_BL=labels_BL, spoken_B=torch.ones(3).bool())
    layer, taught = (nn.Linear(width, n_outputs, bias=False) for _ in range(2))
    layer.weight.data, taught.weight.data = randn(n_outputs, width, seed=1), randn(n_outputs, width, seed=2)
    hidden_BLD, theirs_BLD = randn(3, 5, width, seed=3).requires_grad_(), randn(3, 5, width, seed=4)
    streams = [Projected(hidden_BLD, layer, n_outputs, torch.tensor(lengths))]
    with torch.no_grad():
        streams.append(Projected(theirs_BLD, taught, n_outputs, torch.tensor(lengths)))
    both = {"labels": CrossEntropy(), "soft": SoftTokens(temperature=t)}
    sums = sums_over_rows(both, streams[0], {"soft": streams[1]}, batch, part=3 * n_outputs)
    (0.3 * sums["labels"] + 0.7 * sums["soft"]).backward()

    valid = labels_BL.numpy() >= 0
    h_RD, w_VD = hidden_BLD.detach().double().numpy()[valid], layer.weight.detach().double().numpy()
    z_RV = h_RD @ w_VD.T
    log_p_RV = log_softmax(theirs_BLD.double().numpy()[valid] @ taught.weight.detach().double().numpy().T / t)
    log_q_RV, rows = log_softmax(z_RV / t), np.arange(len(h_RD))
    gradient_RV = 0.3 * np.exp(log_softmax(z_RV)) + 0.7 * t * (np.exp(log_q_RV) - np.exp(log_p_RV))
    gradient_RV[rows, labels_BL.numpy()[valid]] -= 0.3
    soft = t**2 * (np.exp(log_p_RV) * (log_p_RV - log_q_RV)).sum()
    assert sums["soft"].item() == pytest.approx(soft, rel=1e-5)
    for found, expected in (
        (hidden_BLD.grad.numpy()[valid], gradient_RV @ w_VD), (layer.weight.grad.numpy(), gradient_RV.T @ h_RD),
    ):  # fmt: skip
        assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)
    assert not hidden_BLD.grad.numpy()[~valid].any()


def test_no_more_logits_at_a_time_than_asked_for_and_none_of_padding():
    lengths = [6, 2, 5]
    batch, student, _, teacher, streams = made(lengths)
    ours, theirs = streams()
    found = sums_over_rows(terms(), ours, {"soft": theirs, "js": theirs}, batch, part=4 * V + 3)
    assert student.calls == teacher.calls == [4, 4, 4, 1]
    sum(found.values()).backward()
    assert max(student.calls) == 4 and sum(student.calls) == 2 * sum(lengths)  # once more for the gradient
    student.calls.clear()
    sums_over_rows(terms(), ours, {"soft": theirs, "js": theirs}, batch)
    assert student.calls == [sum(lengths)]  # few are made once, for all terms


def test_what_is_made_without_a_gradient_stays_without():
    _, _, _, _, streams = made([3, 1])
    with torch.no_grad():
        ours, _ = streams()
    assert not ours.values_BND.requires_grad and not ours.project(ours.hidden_BND).requires_grad
    ours, _ = streams()
    assert ours.values_BND.requires_grad
    assert ours.where(torch.tensor([True, False])).mask().tolist() == [[True, True, True], [False, False, False]]
