"""What holds for every loss term: gradients, padding that never counts, and alignment."""

# B batch, N frames, L label tokens, V vocabulary, D width

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_streams import ROWS, labelled, of_depth, randn, stream

from rkd.errors import ConfigError
from rkd.losses import CTC, AttentionMaps, CrossEntropy, Hidden, Relations, SoftFrames, SoftTokens, align
from rkd.tokenizer import build_tokenizer

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

DIVERGENCES = ["kl", "reverse_kl", "js", "cross_entropy", "mse"]
DISTANCES = ["l1", "mse", "cosine", "l1_cosine", "correlation", "cka"]
TERMS = {
    "cross_entropy": CrossEntropy, "smoothed": lambda: CrossEntropy(0.1), "ctc": CTC,
    **{f"tokens {d}": lambda d=d: SoftTokens(d) for d in DIVERGENCES},
    "frames": SoftFrames, "top 3": lambda: SoftTokens(top_k=3), "js top 3": lambda: SoftFrames("js", top_k=3, beta=0.2),
    "adaptive": lambda: SoftTokens(temperature="adaptive"),
    **{f"hidden {d}": lambda d=d: Hidden(distance=d) for d in DISTANCES},
    "hidden last": lambda: Hidden(layers="last"), "hidden pairs": lambda: Hidden("encoder", [[0, 0], [2, 1]], "mse"),
    **{f"decoder {d}": lambda d=d: Hidden("decoder", distance=d) for d in ("l1", "cka")},
    "frames' relations": Relations, "tokens' relations": lambda: Relations("decoder"),
    "utterances' relations": lambda: Relations(between="utterances"),
    **{f"attention {p} {d}": lambda p=p, d=d: AttentionMaps(p, distance=d)
       for p in ("encoder", "cross") for d in ("kl", "mse")},
}  # fmt: skip


def made(name, student, teacher):
    torch.manual_seed(0)
    term = TERMS[name]()
    term.bind(student, teacher)
    return term


TOKENS, FRAMES = [3, 2, 1], [5, 4, 2]


def streams_of(values, stride, layers, width, factor=1):
    """Return every stream of a model with so many layers; `values` makes those of a name from a shape."""
    frames = [factor * n for n in FRAMES]
    shape = {"tokens": (3, max(TOKENS)), "frames": (3, max(frames))}
    made = {"logits": stream(values("logits", (*shape["tokens"], 8)), TOKENS),
            "ctc_logits": stream(values("ctc_logits", (*shape["frames"], 8)), frames, stride)}  # fmt: skip
    for i in range(layers + 1):
        name = f"hidden.encoder.{i}"
        made[name] = stream(values(name, (*shape["frames"], width)), frames, stride)
        name = f"attention.encoder.{i}"
        made[name] = stream(weights(values(name, (*shape["frames"], max(frames))), frames), frames, stride)
    for i in range(2):
        name = f"hidden.decoder.{i}"
        made[name] = stream(values(name, (*shape["tokens"], width)), TOKENS)
        name = f"attention.cross.{i}"
        made[name] = stream(weights(values(name, (*shape["tokens"], max(frames))), frames), TOKENS)
    return made


def weights(scores_BQK, n_keys):
    """Return attention weights: zero beyond the keys."""
    valid_B1K = torch.arange(scores_BQK.shape[2]) < torch.tensor(n_keys)[:, None, None]
    return scores_BQK.masked_fill(~valid_B1K, -torch.inf).softmax(-1)


@pytest.mark.parametrize("name", TERMS)
def test_gradients(name):
    """Every term's gradient against finite differences, in float64."""
    term = made(name, of_depth(3, 2), of_depth(4, 3)).double()
    factor = 1 if name.startswith("attention") else 2  # frames of the teacher for one of the student

    def of_teacher(key, shape):
        return randn(*shape, seed=sum(map(ord, key))).double()

    target = streams_of(of_teacher, 640 // factor, 3, 4, factor)
    inputs = {}

    def of_student(key, shape):
        return inputs.setdefault(key, randn(*shape, seed=7 * sum(map(ord, key))).double())

    streams_of(of_student, 640, 2, 3)
    numbers = sorted({s for s, _ in term.pairs}) if hasattr(term, "pairs") else []
    keys = [f"{term.needs[0]}.{number}" for number in numbers] or list(term.needs)
    leaves = [inputs[key].requires_grad_() for key in keys]
    batch = labelled([[0, 2, 5], [3, 5], [5]])

    def value(*leaves):
        return term(streams_of(of_student, 640, 2, 3), target, batch)

    assert torch.autograd.gradcheck(value, leaves, eps=1e-6, atol=1e-5, rtol=1e-4, fast_mode=True)
    for gradient in torch.autograd.grad(value(), leaves):
        assert (gradient != 0).any()
        assert (gradient[1, (2 if gradient.shape[1] == 3 else 4) :] == 0).all()  # beyond the second clip's end


@pytest.mark.parametrize("name", [name for name, make in TERMS.items() if make().teacher])
def test_clips_without_valid_steps_count_nothing(name):
    """As those of noise alone are, which are not compared with what a teacher hears in clean speech."""
    term = made(name, of_depth(3, 2), of_depth(4, 3))
    values = {}

    def drawn(key, shape):
        values[key] = randn(*shape, seed=7 * sum(map(ord, key))).requires_grad_()
        return values[key]

    ours = streams_of(drawn, 640, 2, 3)
    theirs = streams_of(lambda key, shape: randn(*shape, seed=sum(map(ord, key))), 640, 3, 4)
    batch = labelled([[0, 2, 5], [3, 5], [5]])
    value = term({key: one.where(torch.tensor([True, False, True])) for key, one in ours.items()}, theirs, batch)

    def without_second(streams):
        return {key: stream(s.values_BND[[0, 2]], s.lengths_B[[0, 2]].tolist(), s.stride) for key, s in streams.items()}

    assert value.item() == pytest.approx(term(without_second(ours), without_second(theirs), batch).item(), rel=1e-5)
    value.backward()
    gradients = [x.grad for x in values.values() if x.grad is not None]
    assert gradients and all(g.isfinite().all() and (g[1] == 0).all() for g in gradients)


@settings(max_examples=3, deadline=None)
@given(st.integers(0, 1000))
@pytest.mark.parametrize("hop", [320, 160])
def test_the_loss_of_a_batch_is_the_sum_of_the_losses_alone(make_whisper, make_batches, hop, seed):
    student = make_whisper(seed, hop=320)
    teacher = make_whisper(seed + 1, d_model=16, encoder_layers=3, hop=hop)
    batches = make_batches(silence=0.5, seed=seed)
    index = np.random.default_rng(seed).choice(24, 4, replace=False)
    names = [n for n in TERMS if n != "utterances' relations" and not (n.startswith("attention") and hop != 320)]
    terms = [made(name, student, teacher) for name in names]

    def values(rows):
        batch = batches.collate(0, rows)
        streams = [m(batch.clean_BT, batch.lengths_B, batch.labels_BL) for m in (student, teacher)]
        return [(term(*streams, batch).item(), term.count(batch).item()) for term in terms]

    with torch.no_grad():
        together, alone = values(index), [values(index[i : i + 1]) for i in range(4)]
    for i, (value, count) in enumerate(together):
        assert value == pytest.approx(sum(row[i][0] for row in alone), rel=2e-4, abs=1e-6), names[i]
        assert count == pytest.approx(sum(row[i][1] for row in alone), rel=1e-6)


@pytest.mark.parametrize("term", [Hidden("decoder"), Relations("decoder"), AttentionMaps("cross")])
def test_label_tokens_of_other_numbers_are_refused(term):
    student, teacher = of_depth(4, 1), of_depth(4, 1)
    teacher.tokenizer = build_tokenizer(["quite another alphabet"])
    with pytest.raises(ConfigError, match="different vocabularies, so nothing can be compared token by token"):
        term.bind(student, teacher)


@pytest.mark.parametrize(
    "term",
    [
        *(Hidden("encoder", "last", distance) for distance in ("l1", "cosine", "correlation", "cka")),
        Relations("encoder", "last", "frames"),
        AttentionMaps("encoder", "last"),
    ],
    ids=lambda term: f"{type(term).__name__}-{getattr(term, 'distance', '')}",
)
def test_steps_that_only_one_model_has_are_not_compared(term):
    """A wav2vec 2.0 has 49 frames where a Whisper has 50; what it gives beyond them is undefined."""
    model = of_depth(5, 1)
    term.bind(model, model)
    [name] = (f"{kind}.1" for kind in term.needs)
    ours_BND = randn(2, 5, 5).abs()
    theirs_BND = torch.cat([randn(2, 4, 5, seed=1).abs(), torch.full((2, 3, 5), 99.0)], 1)

    def value(n, values_BND):
        ours, theirs = stream(ours_BND, [n, 3], 320), stream(values_BND, [4, 3], 320)
        return term({name: ours}, {name: theirs}, labelled(ROWS)).item()

    assert value(5, theirs_BND) == pytest.approx(value(4, theirs_BND[:, :4]), rel=1e-6)
