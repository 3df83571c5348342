"""Rows on disk: what is stored comes back, and the stored loss is the live one's."""

# R rows, V vocabulary, k kept logits

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_streams import randn
from target_rows import CARD, TEMPERATURES, peaked

from rkd.draws import Draws
from rkd.errors import NumericsError
from rkd.losses import SoftTokens
from rkd.models.base import Projected, Stream
from rkd.targets import LEVELS, DrawnRows, TopRows, pack, rows, stored_rows, unpack_largest


@settings(deadline=None, max_examples=25)
@given(st.integers(3, 700), st.integers(1, 40), st.integers(1, 5), st.integers(0, 99))
def test_rows_come_back(n_outputs, half_k, n_rows, seed):
    k = 2 * half_k
    logits_RV = peaked(n_rows, n_outputs, seed) if n_outputs >= 8 else randn(n_rows, n_outputs, seed=seed)
    packed = pack(logits_RV, replace(CARD, n_outputs=n_outputs, k=k))
    if k >= n_outputs:
        assert np.allclose(packed["values"], logits_RV, rtol=1e-3, atol=1e-3)
        return
    index_Rk, kept_Rk, log_rest_RT = unpack_largest(packed)
    expected = logits_RV.topk(k, dim=1)
    for row in range(n_rows):
        assert set(index_Rk[row]) == set(expected.indices[row].tolist())
        exact_k = logits_RV[row, index_Rk[row]].numpy()
        assert np.abs(kept_Rk[row] - exact_k).max() <= np.ptp(exact_k) / LEVELS * 0.51 + 1e-5
        for t, temperature in enumerate(TEMPERATURES):
            p_V = torch.softmax(logits_RV[row].double() / temperature, -1)
            p_V[index_Rk[row]] = 0
            assert np.exp(log_rest_RT[row, t]) == pytest.approx(p_V.sum().item(), rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("n_outputs", [51865, 51866])
def test_a_token_of_whisper_takes_at_most_400_bytes(n_outputs):
    assert replace(CARD, n_outputs=n_outputs, k=128).row_type.itemsize <= 400


def test_all_of_a_hidden_layer_is_kept():
    values_RD = 30 * randn(5, 7)
    card = replace(CARD, stream="hidden.encoder.1", n_outputs=7, k=None, temperatures=[])
    packed = pack(values_RD, card)
    assert card.row_type.itemsize == 14 and np.allclose(packed["values"], values_RD, rtol=2**-11)
    with pytest.raises(NumericsError, match=r"hidden\.encoder\.1 reaches .*; set targets\.live=true"):
        pack(1e5 * values_RD, card)


def test_the_weights_sum_to_one():
    index, logits, rest = map(torch.from_numpy, unpack_largest(pack(peaked(6, 3000), replace(CARD, n_outputs=3000))))
    for temperature in TEMPERATURES:
        log_p = TopRows(index, logits, rest, TEMPERATURES).log_probabilities(temperature)
        assert log_p.shape == (6, 17)
        assert torch.allclose(log_p.exp().sum(-1), torch.ones(6, dtype=log_p.dtype), atol=1e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_students_gradient_on_peaked_distributions(temperature):
    """Within 1% of the live teacher's where the largest hold the mass; docs/targets.md says what happens elsewhere."""
    n_rows, n_outputs = 8, 51865
    teacher_RV = 2 * randn(n_rows, n_outputs)
    at = torch.randint(n_outputs, (n_rows, 30), generator=torch.Generator().manual_seed(0))
    teacher_RV.scatter_add_(1, at, 60 + 5 * randn(n_rows, 30, seed=1))
    packed = pack(teacher_RV, replace(CARD, n_outputs=n_outputs, k=128))
    index, logits, rest = map(torch.from_numpy, unpack_largest(packed))
    gradients = []
    for teacher in (teacher_RV, TopRows(index, logits.float(), rest, TEMPERATURES)):
        student_RV = (0.7 * teacher_RV + randn(n_rows, n_outputs, seed=2)).requires_grad_()
        SoftTokens(temperature=temperature).of_rows(student_RV, teacher, None).sum().backward()
        gradients.append(student_RV.grad)
    live, stored = gradients
    assert (stored - live).norm() <= 0.01 * live.norm()


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 60), st.integers(1, 40), st.sampled_from(TEMPERATURES), st.integers(0, 99))
def test_each_token_is_drawn_as_often_as_it_is_likely(n_outputs, n_draws, temperature, seed):
    """Rounded down or up, which is why the draws vary less than independent ones."""
    logits_RV = 3 * randn(4, n_outputs, seed=seed)
    card = replace(CARD, n_outputs=n_outputs, k=1, draws=n_draws, temperatures=[temperature])
    drawn_Rn = pack(logits_RV, card, torch.rand(4, generator=torch.Generator().manual_seed(seed)))["drawn"]
    logits_RV = logits_RV.double().numpy() / temperature
    expected_RV = np.exp(logits_RV) / np.exp(logits_RV).sum(-1, keepdims=True) * n_draws
    for drawn_n, expected_V in zip(drawn_Rn, expected_RV, strict=True):
        assert (np.abs(np.bincount(drawn_n, minlength=n_outputs) - expected_V) < 1 + 1e-9).all()


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_draws_have_no_bias(temperature):
    """The mean gradient over many rows that are drawn alike is the full one, within five of its standard errors."""
    n_rows, n_outputs, n_draws = 4000, 30, 4
    teacher_V, student_V = 2 * randn(n_outputs), 2 * randn(n_outputs, seed=1)
    card = replace(CARD, n_outputs=n_outputs, k=2, draws=n_draws, temperatures=[temperature])
    chance_R = torch.rand(n_rows, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    packed = pack(teacher_V.expand(n_rows, -1), card, chance_R)
    drawn = DrawnRows(torch.from_numpy(packed["drawn"].astype(np.int64)), torch.from_numpy(packed["entropy"].copy()))
    values, gradients = [], []
    for teacher in (teacher_V.expand(n_rows, -1), drawn):
        student_RV = student_V.repeat(n_rows, 1).requires_grad_()
        values.append(SoftTokens(temperature=temperature).of_rows(student_RV, teacher, None))
        values[-1].sum().backward()
        gradients.append(student_RV.grad.double())
    exact_RV, estimate_RV = gradients
    error_V = (estimate_RV.mean(0) - exact_RV[0]).abs()
    assert (error_V <= 5 * estimate_RV.std(0) / n_rows**0.5 + 1e-6).all()
    assert (estimate_RV.std(0) > 0).any()
    p_V = (teacher_V.double() / temperature).softmax(-1)
    independent = temperature**2 * (p_V * (1 - p_V)).sum() / n_draws  # the gradient has T^2 times 1/T
    assert estimate_RV.var(0).sum() < independent
    spread = values[1].detach().double().std() / n_rows**0.5
    assert abs(values[1].detach().double().mean() - values[0].detach().double().mean()) <= 5 * spread + 1e-5


def test_what_is_drawn_belongs_to_the_utterance():
    logits_BNV = peaked(8, 500).view(2, 4, 500)
    card = replace(CARD, draws=6, temperatures=[1.0])

    def drawn(clips, lengths):
        stream = Stream(logits_BNV[clips], torch.tensor(lengths), None)
        return stored_rows(stream, card, Draws(0, 0, [[11, 22][i] for i in clips]))["drawn"]

    both = drawn([0, 1], [4, 3])
    assert (np.concatenate([drawn([0], [4]), drawn([1], [3])]) == both).all() and both.shape == (7, 6)


def test_a_stream_is_stored_alike_at_once_and_in_parts(monkeypatch):
    layer, hidden_BND = torch.nn.Linear(6, 50).requires_grad_(False), randn(3, 4, 6)
    lengths_B, card = torch.tensor([4, 1, 3]), replace(CARD, n_outputs=50, k=8)
    projected = Projected(hidden_BND, layer, 50, lengths_B)
    draws = Draws(0, 0, [1, 2, 3])
    whole = stored_rows(projected, card, draws)
    assert len(whole) == 8
    monkeypatch.setattr(rows, "ROWS", 3)
    for stream in (projected, Stream(layer(hidden_BND), lengths_B, None)):
        for ours, theirs in zip(unpack_largest(stored_rows(stream, card, draws)), unpack_largest(whole), strict=True):
            assert np.allclose(ours, theirs, atol=1e-5)
