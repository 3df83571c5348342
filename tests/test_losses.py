"""Loss terms: each against an independent computation in float64, and padding that never counts."""

# B batch, N frames, L label tokens, V vocabulary, D width

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rkd import config
from rkd.config.classes import load_class
from rkd.errors import ConfigError
from rkd.losses import CTC, CrossEntropy, FrameKL, Hidden, TokenKL, align, kl_sum, shared_tokens
from rkd.models.base import Stream
from rkd.tokenizer import build_tokenizer

SEEDS = st.integers(0, 10**6)


def randn(*shape, seed=0, scale=1.0):
    return torch.from_numpy(scale * np.random.default_rng(seed).standard_normal(shape)).float()


def stream(values, lengths, stride=None):
    return Stream(values, torch.tensor(lengths), stride)


def labelled(rows, seconds=1.0):
    """Return as much of a batch as the terms look at."""
    labels_BL = torch.full((len(rows), max(map(len, rows))), -100)
    for row, tokens in zip(labels_BL, rows, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    return SimpleNamespace(
        labels_BL=labels_BL, n_tokens=(labels_BL >= 0).sum(), seconds=torch.tensor(seconds), clean_BT=torch.zeros(1, 1)
    )


def log_softmax(x):
    x = np.asarray(x, dtype=np.float64)
    return x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)


def kl(teacher, student, temperature):
    """T^2 * sum p log(p / q), Hinton et al. 2015, in float64."""
    log_p, log_q = log_softmax(np.float64(teacher) / temperature), log_softmax(np.float64(student) / temperature)
    return temperature**2 * float((np.exp(log_p) * (log_p - log_q)).sum())


def ctc_by_enumeration(logits_NV, labels, blank):
    """-log of the summed probability of every alignment."""
    log_probs_NV = log_softmax(logits_NV)
    total = 0.0
    for path in itertools.product(range(logits_NV.shape[1]), repeat=len(logits_NV)):
        if [token for token, _ in itertools.groupby(path) if token != blank] == list(labels):
            total += np.exp(sum(log_probs_NV[i, token] for i, token in enumerate(path)))
    return -np.log(total)


def ctc_forward(logits_NV, labels, blank):
    """-log likelihood by the forward recursion of Graves et al. 2006, section 4.1, in float64."""
    p_NV = np.exp(log_softmax(logits_NV))
    spaced = [blank, *itertools.chain.from_iterable((token, blank) for token in labels)]
    alpha = np.zeros(len(spaced))
    alpha[:2] = p_NV[0, spaced[:2]]
    for p_V in p_NV[1:]:
        before = alpha.copy()
        for s, token in enumerate(spaced):
            total = before[s] + (before[s - 1] if s else 0.0)
            if s > 1 and token != blank and token != spaced[s - 2]:
                total += before[s - 2]
            alpha[s] = total * p_V[token]
    return -np.log(alpha[-1] + (alpha[-2] if len(spaced) > 1 else 0.0))


# --- values ----------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.floats(0.5, 8.0))
def test_kl_sum(seed, temperature):
    teacher, student = randn(5, 7, seed=seed, scale=3), randn(5, 7, seed=seed + 1, scale=3)
    assert kl_sum(teacher, student, temperature).item() == pytest.approx(kl(teacher, student, temperature), rel=1e-4)
    assert kl_sum(teacher, teacher, temperature).item() == pytest.approx(0.0, abs=1e-5)


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.floats(0.5, 8.0))
def test_the_gradient_of_kl_sum(seed, temperature):
    """d/dz of T^2 KL is T (q - p), and the teacher gets none through a frozen model."""
    teacher, student = randn(4, 6, seed=seed, scale=2), randn(4, 6, seed=seed + 1, scale=2).requires_grad_()
    kl_sum(teacher, student, temperature).backward()
    p = np.exp(log_softmax(np.float64(teacher) / temperature))
    q = np.exp(log_softmax(np.float64(student.detach()) / temperature))
    assert student.grad.numpy() == pytest.approx(temperature * (q - p), abs=1e-5)


def test_kl_at_a_high_temperature_matches_logits():
    """Hinton et al. 2015, section 2.1: with zero-mean logits T^2 KL tends to half the squared difference over V."""
    teacher, student = randn(3, 9), randn(3, 9, seed=1)
    teacher, student = teacher - teacher.mean(1, keepdim=True), student - student.mean(1, keepdim=True)
    expected = ((teacher - student) ** 2).sum().item() / (2 * 9)
    assert kl_sum(teacher.double(), student.double(), 100.0).item() == pytest.approx(expected, rel=0.02)


ROWS = [[0, 2, 1, 5], [3, 5], [5]]


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


def test_token_kl():
    ours, theirs = randn(3, 4, 6, scale=2), randn(3, 4, 6, seed=1, scale=2)
    expected = sum(kl(theirs[b, :n], ours[b, :n], 2.0) for b, n in enumerate([4, 2, 1]))
    term = TokenKL(2.0)
    value = term({"logits": stream(ours, [4, 2, 1])}, {"logits": stream(theirs, [4, 2, 1])}, labelled(ROWS))
    assert value.item() == pytest.approx(expected, rel=1e-5) and term.count(labelled(ROWS)) == 7


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


@pytest.mark.parametrize("ours, theirs", [(640, 640), (640, 320), (320, 640), (640, 480)])
def test_frame_kl(ours, theirs):
    lengths_ours, lengths_theirs = [8, 5], [-(-8 * ours // theirs), -(-5 * ours // theirs)]
    a, b = randn(2, 8, 6, scale=2), randn(2, max(lengths_theirs), 6, seed=1, scale=2)
    expected = 0.0
    for row, (n, m) in enumerate(zip(lengths_ours, lengths_theirs, strict=True)):
        at = np.minimum(np.arange(n) * ours / theirs, m - 1)
        teacher = np.stack([np.interp(at, np.arange(m), b[row, :m, v].double().numpy()) for v in range(6)], axis=1)
        expected += kl(teacher, a[row, :n], 3.0)
    student, teacher = stream(a, lengths_ours, ours), stream(b, lengths_theirs, theirs)
    value = FrameKL(3.0)({"ctc_logits": student}, {"ctc_logits": teacher}, labelled(ROWS)).item()
    assert value == pytest.approx(expected, rel=1e-4)


DISTANCES = {
    "l1": lambda x, y: np.abs(x - y).mean(-1),
    "mse": lambda x, y: ((x - y) ** 2).mean(-1),
    "cosine": lambda x, y: 1 - (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1),
}


def of_depth(width, encoder, decoder=1):
    depth = {"encoder": encoder, "decoder": decoder}
    return SimpleNamespace(width=width, depth=depth, tokenizer=build_tokenizer(["one two three four"]))  # 8 tokens


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("widths", [(6, 6), (4, 6)])
def test_hidden(distance, widths):
    term = Hidden("encoder", "even", distance)
    term.bind(of_depth(widths[0], 2), of_depth(widths[1], 5))
    assert len(term.projections) == (0 if widths[0] == widths[1] else 2)
    lengths = [7, 3]
    ours = {f"hidden.encoder.{i}": stream(randn(2, 7, widths[0], seed=i), lengths, 640) for i in range(3)}
    theirs = {f"hidden.encoder.{i}": stream(randn(2, 7, widths[1], seed=9 + i), lengths, 640) for i in range(6)}
    expected = 0.0
    for i, (s, t) in enumerate([(1, 1), (2, 5)]):  # evenly spaced, first and last
        for b, n in enumerate(lengths):
            x = ours[f"hidden.encoder.{s}"].values_BND[b, :n].double().numpy()
            if len(term.projections):
                linear = term.projections[i]
                x = x @ linear.weight.detach().double().numpy().T + linear.bias.detach().double().numpy()
            y = theirs[f"hidden.encoder.{t}"].values_BND[b, :n].double().numpy()
            expected += 640 / 16000 * DISTANCES[distance](x, y).sum() / 2  # per second, mean over the pairs
    batch = labelled(ROWS, seconds=4.2)
    assert term(ours, theirs, batch).item() == pytest.approx(expected, rel=1e-5)
    assert term.count(batch).item() == pytest.approx(4.2)


def test_hidden_of_the_decoder_and_chosen_layers():
    term = Hidden("decoder", [[0, 2], [1, 0]], "mse")
    term.bind(of_depth(4, 1, 1), of_depth(4, 1, 2))
    lengths = [4, 2, 1]
    ours = {f"hidden.decoder.{i}": stream(randn(3, 4, 4, seed=i), lengths) for i in range(2)}
    theirs = {f"hidden.decoder.{i}": stream(randn(3, 4, 4, seed=9 + i), lengths) for i in range(3)}
    expected = sum(
        DISTANCES["mse"](
            ours[f"hidden.decoder.{s}"].values_BND[b, :n].numpy(),
            theirs[f"hidden.decoder.{t}"].values_BND[b, :n].numpy()
        ).sum() / 2
        for s, t in [(0, 2), (1, 0)] for b, n in enumerate(lengths)
    )  # fmt: skip
    assert term(ours, theirs, labelled(ROWS)).item() == pytest.approx(float(expected), rel=1e-5)
    assert term.count(labelled(ROWS)) == 7 and term.needs == term.teacher == ("hidden.decoder",)


@pytest.mark.parametrize("layers", [[[3, 0]], [[0, 6]]])
def test_layers_that_are_not_there_are_refused(layers):
    with pytest.raises(ConfigError, match=r"layers 0 to 2 \(student\) and 0 to 5 \(teacher\)"):
        Hidden("encoder", layers).bind(of_depth(4, 2), of_depth(4, 5))


# --- alignment -------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([160, 320, 480, 640]), st.sampled_from([160, 320, 480, 640]), st.integers(3200, 16000))
def test_a_ramp_in_time_stays_a_ramp(source, target, n_samples):
    n, m = -(-n_samples // source), -(-n_samples // target)
    ramp = (torch.arange(n) * float(source))[None, :, None].repeat(1, 1, 2)
    ramp = torch.cat([ramp, torch.full((1, 3, 2), 1e9)], dim=1)  # rubbish beyond the end
    aligned = align(stream(ramp, [n], source), stream(torch.zeros(1, m, 2), [m], target))
    expected = torch.minimum(torch.arange(m) * float(target), torch.tensor((n - 1.0) * source))
    assert aligned.shape == (1, m, 2) and torch.allclose(aligned[0, :, 0], expected, rtol=1e-5)


def test_equal_strides_are_copied_and_padded():
    values = randn(1, 5, 2)
    for n in (3, 5, 8):
        aligned = align(stream(values, [5], 640), stream(torch.zeros(1, n, 2), [n], 640))
        assert aligned.shape[1] == n and torch.equal(aligned[:, :5], values[:, :n])


# --- gradients and padding -------------------------------------------------------------------------------------------


def every_term(student, teacher):
    terms = [CrossEntropy(), CrossEntropy(0.1), CTC(), TokenKL(2.0), FrameKL(2.0), Hidden("encoder"), Hidden("decoder"),
             Hidden("encoder", [[0, 0], [2, 1]], "mse"), Hidden("encoder", "even", "cosine")]  # fmt: skip
    torch.manual_seed(0)
    for term in terms:
        term.bind(student, teacher)
    return terms


def test_gradients():
    """Every term's gradient against finite differences."""
    target = {
        "logits": stream(randn(2, 4, 8, seed=1), [4, 3]), "ctc_logits": stream(randn(2, 12, 8, seed=2), [12, 10], 320),
        **{f"hidden.encoder.{i}": stream(randn(2, 12, 4, seed=3 + i), [12, 10], 320) for i in range(4)},
        **{f"hidden.decoder.{i}": stream(randn(2, 4, 4, seed=7 + i), [4, 3]) for i in range(2)},
    }  # fmt: skip
    batch = labelled([[0, 2, 1, 5], [3, 0, 5]])
    for term in every_term(of_depth(4, 2), of_depth(4, 3)):
        tokens = term.needs[0] in ("logits", "hidden.decoder")
        width = 4 if "hidden" in term.needs[0] else 8
        names = [term.needs[0]] if width == 8 else [f"{term.needs[0]}.{s}" for s, _ in term.pairs]

        def value(x, term=term, names=names, tokens=tokens):
            made = stream(x, [4, 3]) if tokens else stream(x, [6, 5], 640)
            return term(dict.fromkeys(names, made), target, batch)

        x = randn(2, 4 if tokens else 6, width, seed=20).requires_grad_()
        with torch.autograd.set_grad_enabled(True):
            analytic = torch.autograd.grad(value(x), x)[0]
        step = 1e-2
        for index in [(0, 0, 0), (0, 3, 2), (1, 2, 3), (1, 0, 1)]:
            up, down = x.detach().clone(), x.detach().clone()
            up[index] += step
            down[index] -= step
            numeric = (value(up) - value(down)).item() / (2 * step)
            assert analytic[index].item() == pytest.approx(numeric, abs=3e-3, rel=2e-2), (type(term).__name__, index)
        assert (analytic[1, 5 if not tokens else 3] == 0).all()  # beyond the second clip's end


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 1000))
@pytest.mark.parametrize("hop", [320, 160])
def test_the_loss_of_a_batch_is_the_sum_of_the_losses_alone(make_whisper, make_batches, hop, seed):
    student = make_whisper(seed, hop=320)
    teacher = make_whisper(seed + 1, d_model=16, encoder_layers=3, hop=hop)
    batches = make_batches(silence=0.5, seed=seed)
    index = np.random.default_rng(seed).choice(24, 4, replace=False)

    def values(rows):
        batch = batches.collate(0, rows)
        streams = [m(batch.clean_BT, batch.lengths_B, batch.labels_BL) for m in (student, teacher)]
        return [(term(*streams, batch).item(), term.count(batch).item()) for term in every_term(student, teacher)]

    with torch.no_grad():
        together, alone = values(index), [values(index[i : i + 1]) for i in range(4)]
    for i, (value, count) in enumerate(together):
        assert value == pytest.approx(sum(row[i][0] for row in alone), rel=1e-4)
        assert count == pytest.approx(sum(row[i][1] for row in alone), rel=1e-6)


# --- YAML and classes agree ------------------------------------------------------------------------------------------

CHOICES = [
    ("whisper", ["student=tiny", "loss=supervised"]), ("whisper", ["student=tiny", "loss=kd"]),
    ("whisper", ["student=base", "loss=kd_hidden"]), ("ctc", ["student=ctc_tiny", "loss=supervised",
    "~loss.terms.ctc"]),
    ("ctc", ["student=ctc_tiny", "loss=kd"]), ("ctc", ["student=ctc_small", "loss=kd_hidden"]),
]  # fmt: skip


@pytest.mark.parametrize("family, overrides", CHOICES)
def test_yaml_says_what_the_classes_need(family, overrides):
    cfg = config.compose("distill", overrides)
    for terms in (cfg.loss.terms, cfg.teacher.loss.terms):
        for name, node in terms.items():
            arguments = {k: v for k, v in node.items() if k not in ("weight", "needs", "teacher")}
            term = config.instantiate(arguments, [])
            assert tuple(node.needs) == term.needs, name
            assert tuple(node.get("teacher", ())) == term.teacher, name


@pytest.mark.parametrize("group", ["student", "teacher"])
@pytest.mark.parametrize("choice", config.folders.group_files("student"))
def test_yaml_says_what_the_models_provide(group, choice, tokenizer, make_batches, pretrained_folders):
    from rkd import assemble

    cfg = config.compose("distill", [f"student={choice}", f"teacher={choice}"])
    node = dict(cfg[group])
    if "source" in node:
        folder = pretrained_folders[node["model_types"][0]]
        model = assemble.hub_model(node, folder, group == "teacher", None, "", []).eval()
    else:
        model = assemble.new_model(node, tokenizer, 2, []).eval()
    batch = make_batches().collate(0, np.arange(2))
    with torch.no_grad():
        streams = model(batch.clean_BT, batch.lengths_B, batch.labels_BL)
    given = {name.rpartition(".")[0] if name.startswith("hidden.") else name for name in streams}
    assert given == set(node["provides"]) and node["output"] in given
    assert isinstance(model, load_class(node["_target_"], []))
    assert type(model).__name__.lower() == node["family"]
    for key in ("soft_loss", "label_loss"):
        assert load_class(node[key], []).needs == (node["output"],)


# --- vocabularies ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory):
    """The tokenizers of English Whisper, of versions 1 and 2, and of version 3."""
    from pretrained import whisper_folder

    from rkd.tokenizer import load_tokenizer

    root = tmp_path_factory.mktemp("vocabularies")
    return {version: load_tokenizer(whisper_folder(root / version, version)) for version in ("en", "v2", "v3")}


def speaks(tokenizer):
    return SimpleNamespace(tokenizer=tokenizer)


@pytest.mark.parametrize("teacher, student", [("v3", "v2"), ("v2", "v3")])
def test_soft_labels_over_the_tokens_that_both_number_alike(vocabularies, teacher, student):
    a, b = vocabularies[teacher], vocabularies[student]
    shared = shared_tokens(a, b)
    # As in the real models: all up to the last common language; from <|yue|> on every number is one higher.
    assert shared == list(range(b.convert_tokens_to_ids("<|su|>") + 1)) and len(shared) < min(len(a), len(b))
    term = TokenKL(2.0)
    term.bind(speaks(b), speaks(a))
    logits_a, logits_b = randn(1, 3, len(a), seed=1), randn(1, 3, len(b), seed=2)
    got = term({"logits": stream(logits_b, [3])}, {"logits": stream(logits_a, [3])}, None)
    p, q = (torch.softmax(x[0, :, : len(shared)].double() / 2, -1) for x in (logits_a, logits_b))
    assert float(got) == pytest.approx(float(4 * (p * (p / q).log()).sum()), rel=1e-5)
    assert p.sum(-1).allclose(torch.ones(3, dtype=torch.float64))


def test_the_same_vocabulary_is_compared_whole(vocabularies):
    tokenizer, term = vocabularies["v2"], TokenKL(2.0)
    term.bind(speaks(tokenizer), speaks(tokenizer))
    x, y = randn(1, 3, len(tokenizer), seed=1), randn(1, 3, len(tokenizer), seed=2)
    got = term({"logits": stream(x, [3])}, {"logits": stream(y, [3])}, None)
    assert float(got) == pytest.approx(float(kl_sum(y[0], x[0], 2.0)))


def test_another_vocabulary_is_refused(vocabularies):
    for pair in (("en", "v2"), ("v3", "en")):
        with pytest.raises(ConfigError, match="loss=transcripts"):
            TokenKL().bind(*(speaks(vocabularies[version]) for version in pair))
    with pytest.raises(ConfigError, match="loss=transcripts"):
        FrameKL().bind(speaks(build_tokenizer(["one two"])), speaks(build_tokenizer(["one three"])))


def test_the_blank_is_the_students_padding():
    from rkd.tokenizer import build_letters, encode

    tokenizer, term = build_letters(["ab"]), CTC()
    term.bind(speaks(tokenizer), None)
    logits = torch.full((1, 5, len(tokenizer)), -30.0)
    for frame, token in enumerate([*tokenizer.convert_tokens_to_ids(["<pad>", "a", "<pad>", "b", "<pad>"])]):
        logits[0, frame, token] = 30.0
    batch = labelled([encode(tokenizer, "ab")])
    assert float(term({"ctc_logits": stream(logits, [5], 320)}, {}, batch)) == pytest.approx(0.0, abs=1e-4)
