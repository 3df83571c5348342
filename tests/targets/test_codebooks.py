"""Product quantisation: the nearest centroids, an error that falls with the bytes, the same books for the same rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_streams import randn

from rkd.targets import codebooks


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 40), st.sampled_from([1, 2, 3, 6]), st.integers(0, 99))
def test_codes_are_those_of_the_nearest_centroids(n_rows, n_codebooks, seed):
    values_RD, books_CKd = randn(n_rows, 6, seed=seed), randn(n_codebooks, 256, 6 // n_codebooks, seed=seed + 1)
    codes = codebooks.encode(values_RD, books_CKd).numpy()
    x, books = values_RD.double().numpy(), books_CKd.double().numpy()
    for row, values_D in zip(codes, x, strict=True):
        for piece, (code, book_Kd) in enumerate(zip(row, books, strict=True)):
            of_piece = values_D.reshape(n_codebooks, -1)[piece]
            squares_K = ((of_piece - book_Kd) ** 2).sum(1)
            # Squared distances of less than the rounding of their float32 terms, |c|^2 - 2xc, are a tie.
            tie = 4 * 2**-24 * ((book_Kd**2).sum(1) + 2 * np.abs(book_Kd @ of_piece)).max()
            assert squares_K[code] <= squares_K.min() + tie
    decoded = codebooks.decode(torch.from_numpy(codes), books_CKd)
    expected = [np.concatenate([book[code] for code, book in zip(row, books, strict=True)]) for row in codes]
    assert np.allclose(decoded, expected, rtol=1e-6)


def error(values_RD, n_codebooks):
    books_CKd = codebooks.learn(values_RD, n_codebooks, "layer")
    decoded = codebooks.decode(codebooks.encode(values_RD, books_CKd), books_CKd)
    return ((decoded - values_RD) ** 2).mean() / values_RD.var()


def test_more_bytes_lose_less():
    values_RD = randn(3000, 16) @ randn(16, 16, seed=1)
    errors = [error(values_RD, n) for n in (2, 4, 8, 16)]
    assert errors == sorted(errors, reverse=True) and errors[0] < 0.6 and errors[-1] < 1e-3


def test_the_centroids_are_means_of_what_is_nearest():
    """What k-means converges to (Lloyd 1982), by an independent computation."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(256, 2)) * 100
    values = centres[generator.integers(256, size=4000)] + generator.normal(size=(4000, 2)) * 1e-3
    [book_Kd] = codebooks.learn(torch.from_numpy(values).float(), 1, "layer").double().numpy()
    nearest = ((values[:, None] - book_Kd) ** 2).sum(-1).argmin(1)
    for code in np.unique(nearest):
        assert np.allclose(values[nearest == code].mean(0), book_Kd[code], atol=1e-3)


def test_features_far_from_zero_lose_no_more_in_half_precision():
    """Hidden layers have features whose mean is many standard deviations from zero."""
    values_RD = randn(3000, 8) + torch.tensor([0.0, 0.0, 300.0, 0.0, -1000.0, 0.0, 0.0, 0.0])
    with torch.autocast("cpu", torch.bfloat16):
        lost = error(values_RD, 4) * values_RD.var()
    assert lost.item() == pytest.approx(error(randn(3000, 8), 4).item(), rel=0.1)


def test_fewer_rows_than_centroids_come_back():
    values_RD = randn(100, 6)
    assert error(values_RD, 3) < 1e-10


def test_the_same_rows_give_the_same_books_whatever_was_drawn_before():
    values_RD = randn(600, 6)
    first = codebooks.learn(values_RD, 2, "layer")
    torch.manual_seed(7)
    assert torch.equal(first, codebooks.learn(values_RD, 2, "layer"))
    assert not torch.equal(first, codebooks.learn(values_RD, 2, "another"))


@pytest.mark.gpu
def test_books_on_the_device_are_those_of_the_cpu():
    values_RD = randn(600, 6)
    cpu, cuda = (codebooks.learn(values_RD.to(device), 2, "layer").cpu() for device in ("cpu", "cuda"))
    assert torch.allclose(cpu, cuda, atol=1e-2)
