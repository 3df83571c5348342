"""Labels: cross-entropy and CTC against independent computations in float64."""

# B batch, N frames, L label tokens, V vocabulary

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_streams import ROWS, ctc_forward, labelled, log_softmax, randn, speaks, stream

from rkd.losses import CTC, FGSM, VAT, CrossEntropy, SoftTokens

SEEDS = st.integers(0, 10**6)


def ctc_by_enumeration(logits_NV, labels, blank):
    """-log of the summed probability of every alignment."""
    log_probs_NV = log_softmax(logits_NV)
    total = 0.0
    for path in itertools.product(range(logits_NV.shape[1]), repeat=len(logits_NV)):
        if [token for token, _ in itertools.groupby(path) if token != blank] == list(labels):
            total += np.exp(sum(log_probs_NV[i, token] for i, token in enumerate(path)))
    return -np.log(total)


def test_cross_entropy():
    logits_BLV, batch = randn(3, 4, 6, scale=2), labelled(ROWS)
    expected = -sum(log_softmax(logits_BLV[b, i])[token] for b, row in enumerate(ROWS) for i, token in enumerate(row))
    streams = {"logits": stream(logits_BLV, [4, 2, 1])}
    assert CrossEntropy()(streams, {}, batch).item() == pytest.approx(expected, rel=1e-5)
    assert CrossEntropy().count(batch) == 7
    # Szegedy et al. 2016: a share of the target is spread over the vocabulary.
    smooth = -sum(log_softmax(logits_BLV[b, i]).mean() for b, row in enumerate(ROWS) for i in range(len(row)))
    smoothed = CrossEntropy(label_smoothing=0.2)(streams, {}, batch).item()
    assert smoothed == pytest.approx(0.8 * expected + 0.2 * smooth, rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.lists(st.integers(0, 2), max_size=3), st.integers(0, 2))
def test_ctc(seed, labels, extra):
    n = len(labels) + sum(a == b for a, b in itertools.pairwise(labels)) + extra
    n = max(n, 1)
    logits_NV = randn(n, 5, seed=seed, scale=2)  # tokens 0 to 2, the end of text (3), the blank (4)
    by_enumeration = ctc_by_enumeration(logits_NV.numpy(), labels, 4)
    assert ctc_forward(logits_NV.numpy(), labels, 4) == pytest.approx(by_enumeration, rel=1e-9)
    value = CTC()({"ctc_logits": stream(logits_NV[None], [n], 640)}, {}, labelled([[*labels, 3]])).item()
    assert value == pytest.approx(by_enumeration, rel=1e-4, abs=1e-5)


def test_ctc_of_a_long_batch():
    rows, lengths = [[0, 0, 4, 1, 6], [5, 2, 6], [3, 6]], [30, 17, 4]
    logits_BNV = randn(3, 30, 8, scale=2)
    expected = sum(ctc_forward(logits_BNV[b, :n].numpy(), rows[b][:-1], 7) for b, n in enumerate(lengths))
    value = CTC()({"ctc_logits": stream(logits_BNV, lengths, 640)}, {}, labelled(rows)).item()
    assert value == pytest.approx(expected, rel=1e-5)


def test_ctc_of_labels_that_do_not_fit_counts_nothing():
    logits_BNV = randn(2, 3, 5).requires_grad_()
    both = CTC()({"ctc_logits": stream(logits_BNV, [3, 2], 640)}, {}, labelled([[0, 1, 3], [0, 0, 1, 3]]))
    alone = CTC()({"ctc_logits": stream(logits_BNV[:1], [3], 640)}, {}, labelled([[0, 1, 3]]))
    assert both.item() == pytest.approx(alone.item(), rel=1e-6)
    both.backward()
    assert torch.isfinite(logits_BNV.grad).all() and (logits_BNV.grad[1] == 0).all()


@pytest.mark.parametrize("term", [CrossEntropy(), CTC(), FGSM()])
def test_what_the_student_wrote_is_no_label(term):
    batch = labelled(ROWS)
    assert term.applies(batch) and SoftTokens().applies(batch) and VAT().applies(batch)
    batch.on_policy = True
    assert not term.applies(batch) and SoftTokens().applies(batch) and VAT().applies(batch)


def test_the_blank_is_the_students_padding():
    from rkd.tokenizer import build_letters, encode

    tokenizer, term = build_letters(["ab"]), CTC()
    term.bind(speaks(tokenizer), None)
    logits = torch.full((1, 5, len(tokenizer)), -30.0)
    for frame, token in enumerate([*tokenizer.convert_tokens_to_ids(["<pad>", "a", "<pad>", "b", "<pad>"])]):
        logits[0, frame, token] = 30.0
    batch = labelled([encode(tokenizer, "ab")])
    assert float(term({"ctc_logits": stream(logits, [5], 320)}, {}, batch)) == pytest.approx(0.0, abs=1e-4)
