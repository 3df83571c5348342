"""Terms' shares of the gradient, against computations by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rkd.losses import Balance, gradient_norms

NORMS = st.lists(st.floats(1e-4, 1e4), min_size=3, max_size=3)
WEIGHTS = st.lists(st.floats(0.01, 10), min_size=3, max_size=3)


def measured(*norms, terms=3, every=50):
    balance = Balance(terms, every).double()
    for row in norms:
        balance.update(torch.tensor(row, dtype=torch.float64))
    return balance


@settings(max_examples=50, deadline=None)
@given(NORMS, WEIGHTS)
def test_a_share_of_the_gradient_is_the_share_of_the_weight(norms, weights):
    """Défossez et al. 2022, section 3.4, with R = sum of w n: the whole is as large as the weights alone make it."""
    w, n = np.array(weights), np.array(norms)
    scaled = measured(norms).scaled(torch.tensor(weights, dtype=torch.float64)).numpy()
    assert scaled * n == pytest.approx((w * n).sum() * w / w.sum(), rel=1e-9)


def test_a_term_that_is_off_or_has_no_gradient_takes_no_share():
    balance = measured([2.0, 4.0, 0.0])
    assert balance.scaled(torch.tensor([1.0, 3.0, 5.0]).double()).tolist() == pytest.approx([1.75, 2.625, 5.0])
    assert balance.scaled(torch.tensor([1.0, 0.0, 5.0]).double()).tolist() == pytest.approx([1.0, 0.0, 5.0])
    assert balance.scaled(torch.tensor([0.0, 0.0, 5.0]).double()).tolist() == [0.0, 0.0, 5.0]
    assert measured().scaled(torch.tensor([1.0, 0.5, 5.0]).double()).tolist() == [1.0, 0.5, 5.0]


def test_the_norms_are_a_running_mean():
    rows = [[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [5.0, 5.0, 5.0]]
    shares = np.array([0.9**2, 0.9, 1.0])
    expected = shares @ np.array(rows) / shares.sum()
    balance = measured(*rows)
    assert (balance.norms_K / balance.mass).numpy() == pytest.approx(expected, rel=1e-12)
    balance.update(torch.tensor([float("inf"), 1.0, 1.0]).double())
    assert (balance.norms_K / balance.mass).numpy() == pytest.approx(expected, rel=1e-12)
    balance.update(torch.tensor([7.0, 7.0, 1.0]).double(), anew=True)
    assert (balance.norms_K / balance.mass).tolist() == pytest.approx([7.0, 7.0, 1.0])
    assert [step for step in range(8) if Balance(1, 3).due(step)] == [0, 3, 6]


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_norms_are_of_sums_over_batches_and_ranks(scale):
    """Not sums of norms: gradients of two batches may cancel."""
    p, q = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([3.0]))
    batches = [
        {"a": (p * torch.tensor([3.0, 0.0])).sum(), "b": q.sum() ** 2, "none": torch.tensor(1.0)},
        {"a": (p * torch.tensor([-3.0, 4.0])).sum() + 2 * q.sum(), "b": 0 * p.sum(), "none": torch.tensor(1.0)},
    ]
    found = gradient_norms(iter(batches), [p, q], lambda g: 2 * g, scale)
    assert found.tolist() == pytest.approx([2 * np.hypot(4, 2), 2 * 6.0, 0.0])
    assert p.grad is None and q.grad is None
