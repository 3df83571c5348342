"""Soft labels: each divergence against an independent computation in float64, top-k, temperatures, vocabularies."""

# R rows, V vocabulary

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_streams import ROWS, labelled, log_softmax, randn, speaks, stream

from rkd.errors import ConfigError
from rkd.losses import SoftFrames, SoftTokens
from rkd.losses.base import shared_tokens
from rkd.losses.soft import adaptive_temperature, top_and_rest
from rkd.tokenizer import build_tokenizer

SEEDS = st.integers(0, 10**6)


def divergence(kind, teacher, student, temperature, beta=0.5):
    """The divergence of rows of logits by its definition, summed, in float64."""
    teacher, student = np.float64(teacher), np.float64(student)
    if kind == "mse":
        return float(((teacher - student) ** 2).mean(-1).sum())
    p, q = (np.exp(log_softmax(x / temperature)) for x in (teacher, student))
    m = beta * p + (1 - beta) * q

    def kl(a, b):
        return (a * np.log(a / b)).sum()

    found = {
        "kl": kl(p, q), "reverse_kl": kl(q, p), "js": beta * kl(p, m) + (1 - beta) * kl(q, m),
        "cross_entropy": -(p * np.log(q)).sum(),
    }  # fmt: skip
    return temperature**2 * float(found[kind])


KINDS = ["kl", "reverse_kl", "js", "cross_entropy", "mse"]


def rows(teacher, student, *args, **kwargs):
    return SoftTokens(*args, **kwargs).of_rows(student, teacher, None)


# --- divergences -----------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.floats(0.5, 8.0), st.floats(0.05, 0.95))
@pytest.mark.parametrize("kind", KINDS)
def test_a_divergence(kind, seed, temperature, beta):
    teacher, student = randn(5, 7, seed=seed, scale=3), randn(5, 7, seed=seed + 1, scale=3)
    value = rows(teacher, student, kind, temperature, beta=beta).sum().item()
    assert value == pytest.approx(divergence(kind, teacher, student, temperature, beta), rel=1e-3, abs=1e-5)
    if kind != "cross_entropy":  # whose least is the teacher's entropy
        assert value > 0 and rows(teacher, teacher, kind, temperature, beta=beta).sum().item() == pytest.approx(
            0, abs=1e-4
        )


def test_what_the_divergences_have_to_do_with_each_other():
    teacher, student = randn(4, 9, scale=2).double(), randn(4, 9, seed=1, scale=2).double()
    value = {kind: rows(teacher, student, kind).sum().item() for kind in KINDS}
    assert rows(student, teacher, "kl").sum().item() == pytest.approx(value["reverse_kl"])
    entropy = divergence("cross_entropy", teacher, teacher, 2.0)
    assert value["cross_entropy"] == pytest.approx(value["kl"] + entropy)
    # Agarwal et al. 2024: JSD(beta) / beta tends to KL(p || q) as beta goes to 0; from the other end, to KL(q || p).
    assert rows(teacher, student, "js", beta=1e-6).sum().item() / 1e-6 == pytest.approx(value["kl"], rel=1e-3)
    assert rows(teacher, student, "js", beta=1 - 1e-6).sum().item() / 1e-6 == pytest.approx(
        value["reverse_kl"], rel=1e-3
    )
    assert rows(teacher, student, "js").max() <= 4 * np.log(2)


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.floats(0.5, 8.0))
def test_the_gradient_of_kl(seed, temperature):
    """d/dz of T^2 KL is T (q - p), Hinton et al. 2015, equation 2 times T^2."""
    teacher, student = randn(4, 6, seed=seed, scale=2), randn(4, 6, seed=seed + 1, scale=2).requires_grad_()
    rows(teacher, student, "kl", temperature).sum().backward()
    p = np.exp(log_softmax(np.float64(teacher) / temperature))
    q = np.exp(log_softmax(np.float64(student.detach()) / temperature))
    assert student.grad.numpy() == pytest.approx(temperature * (q - p), abs=1e-5)


def test_kl_at_a_high_temperature_matches_logits():
    """Hinton et al. 2015, section 2.1: with zero-mean logits T^2 KL tends to half the squared difference over V."""
    teacher, student = randn(3, 9), randn(3, 9, seed=1)
    teacher, student = teacher - teacher.mean(1, keepdim=True), student - student.mean(1, keepdim=True)
    by_mse = rows(teacher.double(), student.double(), "mse").sum().item()
    assert rows(teacher.double(), student.double(), "kl", 100.0).sum().item() == pytest.approx(by_mse / 2, rel=0.02)


def test_soft_tokens():
    ours, theirs = randn(3, 4, 6, scale=2), randn(3, 4, 6, seed=1, scale=2)
    expected = sum(divergence("kl", theirs[b, :n], ours[b, :n], 2.0) for b, n in enumerate([4, 2, 1]))
    term = SoftTokens()
    value = term({"logits": stream(ours, [4, 2, 1])}, {"logits": stream(theirs, [4, 2, 1])}, labelled(ROWS))
    assert value.item() == pytest.approx(expected, rel=1e-5) and term.count(labelled(ROWS)) == 7


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ours, theirs", [(640, 640), (640, 320), (320, 640), (640, 480)])
def test_soft_frames(kind, ours, theirs):
    lengths_ours, lengths_theirs = [8, 5], [-(-8 * ours // theirs), -(-5 * ours // theirs)]
    a, b = randn(2, 8, 6, scale=2), randn(2, max(lengths_theirs), 6, seed=1, scale=2)
    expected = 0.0
    for row, (n, m) in enumerate(zip(lengths_ours, lengths_theirs, strict=True)):
        at = np.minimum(np.arange(n) * ours / theirs, m - 1)
        teacher = np.stack([np.interp(at, np.arange(m), b[row, :m, v].double().numpy()) for v in range(6)], axis=1)
        expected += divergence(kind, teacher, a[row, :n], 3.0)
    student, teacher = stream(a, lengths_ours, ours), stream(b, lengths_theirs, theirs)
    value = SoftFrames(kind, 3.0)({"ctc_logits": student}, {"ctc_logits": teacher}, labelled(ROWS)).item()
    assert value == pytest.approx(expected, rel=1e-4)


def test_half_types_are_compared_in_float32():
    teacher, student = randn(4, 300, scale=4).bfloat16(), randn(4, 300, seed=1, scale=4).bfloat16()
    value = rows(teacher, student)
    assert value.dtype == torch.float32
    assert value.sum().item() == pytest.approx(divergence("kl", teacher.float(), student.float(), 2.0), rel=1e-4)
    assert rows(teacher.double(), student.double()).dtype == torch.float64


# --- top-k -----------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.integers(1, 9), st.floats(0.5, 8.0))
@pytest.mark.parametrize("kind", KINDS[:4])
def test_top_k_keeps_the_rests_mass(kind, seed, k, temperature):
    teacher, student = randn(5, 9, seed=seed, scale=3).double(), randn(5, 9, seed=seed + 1, scale=3).double()
    expected = 0.0
    for t, s in zip(teacher.numpy(), student.numpy(), strict=True):
        p, q = (np.exp(log_softmax(x / temperature)) for x in (t, s))
        top = np.argsort(-t)[:k]
        p, q = (np.append(x[top], np.delete(x, top).sum()) if k < 9 else x[top] for x in (p, q))
        expected += divergence(kind, np.log(p), np.log(q), 1.0)
    value = rows(teacher, student, kind, temperature, k).sum().item()
    assert value == pytest.approx(temperature**2 * expected, rel=1e-9, abs=1e-12)


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.integers(0, 3))
@pytest.mark.parametrize("kind", KINDS[:4])
def test_top_k_of_all_or_all_but_one_is_the_whole(kind, seed, more):
    teacher, student = randn(5, 7, seed=seed, scale=3), randn(5, 7, seed=seed + 1, scale=3)
    whole = rows(teacher, student, kind)
    assert torch.allclose(rows(teacher, student, kind, top_k=6 + more), whole, rtol=1e-4, atol=1e-5)
    coarse = rows(teacher, student, kind, top_k=2)
    if kind in ("kl", "reverse_kl", "js"):
        assert (coarse <= whole + 1e-4).all()  # data processing: bringing outcomes together brings them nearer


@pytest.mark.parametrize("kind", KINDS[:4])
def test_top_k_where_the_rests_mass_underflows(kind):
    teacher, student = torch.full((2, 9), -400.0), torch.full((2, 9), -300.0)
    teacher[:, :2], student[:, 1:3] = 300.0, 200.0
    student.requires_grad_()
    value = rows(teacher, student, kind, 1.0, top_k=2).sum()
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(student.grad).all() and (student.grad != 0).any()


def test_the_rest_is_exact_at_every_temperature():
    """One minus the others' mass would be rounding: here the rest has 1e-12 of the mass."""
    logits = torch.tensor([[0.0, 0.0, -27.6, -28.3]])
    log_p, _ = top_and_rest(logits.log_softmax(-1), logits.log_softmax(-1), 2)
    expected = np.logaddexp(-27.6, -28.3) - np.log(2)
    assert log_p[0, 2].item() == pytest.approx(expected, rel=1e-5)


def test_mse_has_no_rest():
    with pytest.raises(ConfigError, match="top_k=null"):
        SoftTokens("mse", top_k=4)
    with pytest.raises(ConfigError, match="expected kl, reverse_kl"):
        SoftTokens("kll")


# --- temperatures ----------------------------------------------------------------------------------------------------


def test_a_temperature_that_changes():
    teacher, student = randn(5, 7, scale=3), randn(5, 7, seed=1, scale=3)
    term = SoftTokens(temperature={"from": 4.0, "to": 1.0, "shape": "linear"})
    for share, temperature in ((0.0, 4.0), (0.5, 2.5), (1.0, 1.0)):
        term.at(share)
        expected = divergence("kl", teacher, student, temperature)
        assert term.of_rows(student, teacher, None).sum().item() == pytest.approx(expected, rel=1e-4)


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.floats(0.1, 30))
def test_an_adaptive_temperature_grows_with_confidence(seed, scale):
    logits = randn(1, 8, seed=seed)
    t, sharper = (adaptive_temperature(x, 1.0, 4.0).item() for x in (scale * logits, 1.5 * scale * logits))
    assert 1.0 - 1e-5 <= t <= sharper + 1e-5 <= 4.0 + 2e-5
    p = np.exp(log_softmax(scale * logits.double().numpy()))[0]
    entropy = -(p * np.log(np.maximum(p, 1e-300))).sum()
    assert t == pytest.approx(4.0 - 3.0 * entropy / np.log(8), abs=1e-4)


def test_the_bounds_of_an_adaptive_temperature():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [500.0, 0.0, 0.0, 0.0]])
    assert adaptive_temperature(logits, 1.5, 3.0).tolist() == pytest.approx([1.5, 3.0])


def test_each_row_is_compared_at_its_own_temperature():
    teacher, student = randn(5, 7, scale=3), randn(5, 7, seed=1, scale=3)
    expected = [
        divergence("kl", t[None], s[None], adaptive_temperature(t[None], 1.0, 4.0).item())
        for t, s in zip(teacher, student, strict=True)
    ]
    assert rows(teacher, student, temperature="adaptive").tolist() == pytest.approx(expected, rel=1e-3)


# --- vocabularies ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory):
    """The tokenizers of English Whisper, of versions 1 and 2, and of version 3."""
    from pretrained import whisper_folder

    from rkd.tokenizer import load_tokenizer

    root = tmp_path_factory.mktemp("vocabularies")
    return {version: load_tokenizer(whisper_folder(root / version, version)) for version in ("en", "v2", "v3")}


@pytest.mark.parametrize("teacher, student", [("v3", "v2"), ("v2", "v3")])
def test_soft_labels_over_the_tokens_that_both_number_alike(vocabularies, teacher, student):
    a, b = vocabularies[teacher], vocabularies[student]
    shared = shared_tokens(a, b)
    # As in the real models: all up to the last common language; from <|yue|> on every number is one higher.
    assert shared == list(range(b.convert_tokens_to_ids("<|su|>") + 1)) and len(shared) < min(len(a), len(b))
    term = SoftTokens()
    term.bind(speaks(b), speaks(a))
    logits_a, logits_b = randn(1, 3, len(a), seed=1), randn(1, 3, len(b), seed=2)
    got = term({"logits": stream(logits_b, [3])}, {"logits": stream(logits_a, [3])}, None)
    p, q = (torch.softmax(x[0, :, : len(shared)].double() / 2, -1) for x in (logits_a, logits_b))
    assert float(got) == pytest.approx(float(4 * (p * (p / q).log()).sum()), rel=1e-5)
    assert p.sum(-1).allclose(torch.ones(3, dtype=torch.float64))


def test_the_same_vocabulary_is_compared_whole(vocabularies):
    tokenizer, term = vocabularies["v2"], SoftTokens()
    term.bind(speaks(tokenizer), speaks(tokenizer))
    x, y = randn(1, 3, len(tokenizer), seed=1), randn(1, 3, len(tokenizer), seed=2)
    got = term({"logits": stream(x, [3])}, {"logits": stream(y, [3])}, None)
    assert float(got) == pytest.approx(divergence("kl", y[0], x[0], 2.0), rel=1e-4)


def test_another_vocabulary_is_refused(vocabularies):
    for pair in (("en", "v2"), ("v3", "en")):
        with pytest.raises(ConfigError, match="loss=transcripts"):
            SoftTokens().bind(*(speaks(vocabularies[version]) for version in pair))
    with pytest.raises(ConfigError, match="loss=transcripts"):
        SoftFrames().bind(speaks(build_tokenizer(["one two"])), speaks(build_tokenizer(["one three"])))


@pytest.mark.parametrize("stride, stored, compared", [(320, [6, 3], [6, 3]), (640, [5, 4], [3, 2])])
def test_frames_beyond_what_is_stored_of_a_teacher_are_not_compared(stride, stored, compared):
    """Stored outputs end with the speech, while a student may hear silence after it."""
    ours, theirs, term = randn(2, 9, 5), randn(2, 6, 5, seed=1), SoftFrames()
    got = term({"ctc_logits": stream(ours, [9, 5], stride)}, {"ctc_logits": stream(theirs, stored, 320)}, None)
    expected = 0.0
    for i, (n, m) in enumerate(zip(compared, stored, strict=True)):
        alone, taught = stream(ours[i : i + 1, :n], [n], stride), stream(theirs[i : i + 1], [m], 320)
        expected += term({"ctc_logits": alone}, {"ctc_logits": taught}, None).item()
    assert got.item() == pytest.approx(expected, rel=1e-5)
