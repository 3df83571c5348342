"""The training loop: sums that batching, accumulation and ranks do not change, and a resume that is exact."""

import copy
import hashlib
import itertools
import json
import math
import os
import signal
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rkd import assemble, ranks
from rkd.config import compose
from rkd.data.batches import stream
from rkd.errors import ConfigError, Interrupted, NumericsError
from rkd.losses import (
    CTC,
    FGSM,
    ITSELF,
    VAT,
    AttentionMaps,
    Balance,
    CrossEntropy,
    Hidden,
    Relations,
    Schedule,
    SoftTokens,
    Term,
    sums_over_rows,
)  # fmt: skip
from rkd.noise import Coloured, Corruption, Resources
from rkd.phases import Phase
from rkd.training import checkpoint
from rkd.training import objective as objectives
from rkd.training.objective import Objective
from rkd.training.trainer import optimize

WHOLE = Phase(0, 6, "all", [], 1e-3, 0.2, "cosine", 0.0, None, None, {})


def digest(module):
    total = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        total.update(name.encode() + value.numpy(force=True).tobytes())
    return total.hexdigest()


def white_noise(device="cpu"):
    white = Coloured(0)
    white.load(Resources("train", lambda *k: [], lambda seconds: {}, torch.device(device)))
    how = Corruption({"white": white}, {"white": 1.0}, {"none": 0.2, "noise": 0.8}, [5.0, 10.0])
    return lambda batch, phase: assemble.corrupt(batch, how.at(phase.snr_db, phase.snr_range_db))


def distillation(make_whisper, dropout=0.0, device="cpu", balance_every=None):
    """Return an objective with every kind of term, and the teacher's part of it."""
    teacher, student = make_whisper(7, d_model=48).to(device), make_whisper(1, dropout=dropout).train()
    terms = {
        "labels": CrossEntropy(), "ctc": CTC(), "soft": SoftTokens(temperature={"from": 4, "to": 1}),
        "hidden": Hidden(), "attention": AttentionMaps("cross"), "relations": Relations(), "itself": SoftTokens(),
        "fgsm": FGSM(), "vat": VAT(),
    }  # fmt: skip
    terms["itself"].against = ITSELF
    torch.manual_seed(5)
    for name, term in terms.items():
        term.bind(student, student if name == "itself" else teacher)
    weights = {"labels": 0.3, "ctc": 0.3, "soft": Schedule(1.0, 0.2), "hidden": 1.0, "attention": 1.0,
               "relations": 1.0, "itself": Schedule(0.0, 1.0, "cosine"), "fgsm": 0.5, "vat": 0.5}  # fmt: skip

    @torch.no_grad()
    def teach(batch):
        return [teacher(batch.clean_BT, batch.lengths_B, batch.labels_BL)]

    return Objective(student, terms, weights, balance_every).to(device), teach


# --- learning --------------------------------------------------------------------------------------------------------


def test_overfits_one_batch(make_ctc, make_batches, run_training, tmp_path):
    """With as many steps as it takes, the loop must learn a few utterances by heart."""
    model = make_ctc(1).train()
    batches = make_batches(100.0)
    few = batches.collate(0, np.arange(6))
    batches.epoch = lambda epoch: [np.arange(6)]

    def validate(student):
        written = student.transcribe(few.clean_BT, few.lengths_B)
        return float(np.mean([a != b for a, b in zip(written, few.texts, strict=True)]))

    told = run_training(
        Objective(model, {"ctc": CTC()}, {"ctc": 1.0}), batches, tmp_path, steps=150, learning_rate=6e-3,
        validate_every=25, validate=validate,
    )  # fmt: skip
    assert told.losses[-1]["ctc"] < 0.05 * told.losses[0]["ctc"]
    assert told.best_wer == 0.0 and validate(model) == 0.0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 151))
    assert [line["step"] for line in lines if "validation_wer" in line] == list(range(25, 151, 25))


def test_losses_are_written_now_and_then_and_at_the_end(make_ctc, make_batches, run_training, tmp_path):
    run_training(Objective(make_ctc(), {"ctc": CTC()}, {"ctc": 1.0}), make_batches(), tmp_path, steps=5, log_every=2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 5]


def test_the_student_ends_with_the_best_weights(make_ctc, make_batches, run_training, tmp_path):
    model = make_ctc(1).train()
    wers, seen = iter([0.5, 0.2, 0.9]), []

    def validate(student):
        assert not student.training
        seen.append(digest(student))
        return next(wers)

    told = run_training(
        Objective(model, {"ctc": CTC()}, {"ctc": 1.0}),
        make_batches(),
        tmp_path,
        steps=6,
        validate_every=2,
        validate=validate,
    )
    assert told.best_wer == 0.2 and digest(model) == seen[1] and len(set(seen)) == 3


def test_early_stopping(make_ctc, make_batches, run_training, tmp_path):
    wers = iter([0.5, 0.4, 0.4, 0.6, 0.1])
    told = run_training(
        Objective(make_ctc(1).train(), {"ctc": CTC()}, {"ctc": 1.0}), make_batches(), tmp_path, steps=50,
        validate_every=2, patience=2, validate=lambda student: next(wers),
    )  # fmt: skip
    assert [step for step, _ in told.wers] == [2, 4, 6, 8] and len(told.losses) == 8
    again = run_training(
        Objective(make_ctc(1).train(), {"ctc": CTC()}, {"ctc": 1.0}), make_batches(), tmp_path, steps=50,
        validate_every=2, patience=2, validate=lambda student: next(wers),
    )  # fmt: skip
    assert not again.losses and again.best_wer == 0.4  # killed after its last step, it would not take up again


def test_clean_speech_comes_first(make_ctc, make_batches, run_training, tmp_path):
    heard = []

    def corrupt(batch, phase):
        heard.append(len(told_steps))
        return batch

    told_steps = []
    at = {i: (lambda i=i: told_steps.append(i)) for i in range(1, 11)}
    run_training(
        Objective(make_ctc(1).train(), {"ctc": CTC()}, {"ctc": 1.0}), make_batches(), tmp_path, at, corrupt, steps=10,
        clean=0.4, validate_every=10,
    )  # fmt: skip
    assert heard == [4, 5, 6, 7, 8, 9]  # steps done before each noisy one


# --- sums ------------------------------------------------------------------------------------------------------------


class Recording:
    """Stands for an optimizer: keeps the gradients instead of using them."""

    def __init__(self, module):
        self.module, self.gradients = module, {}

    def step(self):
        self.gradients = {n: p.grad.clone() for n, p in self.module.named_parameters() if p.grad is not None}

    def zero_grad(self):
        self.module.zero_grad()


def test_accumulation_equals_one_large_batch(make_whisper, make_batches, make_settings):
    objective, teach = distillation(make_whisper)
    batches, accelerator = make_batches(100.0), ranks.accelerator("cpu", "fp32")
    order = np.argsort(batches.store.n_samples)
    short, long = order[:9], order[-2:]  # uneven in number and in length: a mean of means would be far off
    found = []
    for accumulate, indices in ((1, [np.concatenate([short, long])]), (2, [short, long])):
        recording = Recording(objective)
        feed = (batches.collate(0, index) for index in indices)
        losses, _, seconds = optimize(
            objective, recording, feed, lambda batch, phase: batch, teach,
            make_settings(accumulate=accumulate, clip_norm=1e9), 0, WHOLE, accelerator,
        )  # fmt: skip
        found.append((losses, seconds, recording.gradients))
    (one, one_seconds, one_gradients), (two, two_seconds, two_gradients) = found
    assert one_seconds == pytest.approx(two_seconds) and one.keys() == two.keys()
    for name, value in one.items():
        searched = name in ("fgsm", "vat")  # by gradients of the waveform, which round apart from each other
        assert value == pytest.approx(two[name], rel=2e-4 if searched else 1e-5), name
    assert one_gradients.keys() == two_gradients.keys()
    for name, gradient in one_gradients.items():
        assert torch.allclose(gradient, two_gradients[name], atol=1e-5), name
    assert max(float(g.abs().max()) for g in one_gradients.values()) > 1e-2  # there was something to compare


def test_a_hundred_steps_are_those_of_a_plain_loop(make_whisper, make_batches, run_training, tmp_path, monkeypatch):
    """All logits of labels padded to 32 tokens, textbook losses, plain AdamW; here rows in parts, and the fused one."""
    teacher, student = make_whisper(7, d_model=48), make_whisper(1).train()
    plain, corrupt, betas, eps, rate = copy.deepcopy(student), white_noise(), (0.9, 0.98), 1e-6, 2e-3
    vocabulary = student.hf.config.vocab_size
    monkeypatch.setattr(objectives, "sums_over_rows", partial(sums_over_rows, part=7 * vocabulary))
    terms = {"labels": CrossEntropy(), "soft": SoftTokens(temperature=2.0)}
    for term in terms.values():
        term.bind(student, teacher)

    @torch.no_grad()
    def teach(batch):
        return [teacher(batch.clean_BT, batch.lengths_B, batch.labels_BL)]

    told = run_training(
        Objective(student, terms, {"labels": 0.3, "soft": 0.7}), make_batches(), tmp_path, corrupt=corrupt, teach=teach,
        steps=100, validate_every=100, learning_rate=rate, betas=betas, weight_decay=0.0, warmup=0.0,
        schedule="constant",
    )  # fmt: skip

    def log_softmax(logits):
        shifted = logits - logits.amax(-1, keepdim=True)
        return shifted - shifted.exp().sum(-1, keepdim=True).log()

    weights = [p for p in plain.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=betas, eps=eps, weight_decay=0.0, foreach=False)
    feed, expected = stream(make_batches(), 0), []
    for _ in range(100):
        batch = corrupt(next(feed), WHOLE)
        labels = torch.nn.functional.pad(batch.labels_BL, (0, 32 - batch.labels_BL.shape[1]), value=-100)
        valid = labels >= 0
        with torch.no_grad():
            log_p = log_softmax(teacher(batch.clean_BT, batch.lengths_B, labels)["logits"].values_BND / 2)
        logits = plain(batch.noisy_BT, batch.lengths_B, labels)["logits"].values_BND
        soft = 4 * (log_p.exp() * (log_p - log_softmax(logits / 2))).sum(-1)
        hard = -log_softmax(logits).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        means = {name: (x * valid).sum() / valid.sum() for name, x in (("labels", hard), ("soft", soft))}
        (0.3 * means["labels"] + 0.7 * means["soft"]).backward()
        norm = torch.stack([(p.grad**2).sum() for p in weights if p.grad is not None]).sum().sqrt()
        for p in weights:
            if p.grad is not None:
                p.grad *= min(1.0, 1.0 / float(norm))
        optimizer.step()
        optimizer.zero_grad()
        expected.append({name: float(x.detach()) for name, x in means.items()})
    assert expected[-1]["labels"] < 0.7 * expected[0]["labels"]  # it has learned
    for ours, theirs in zip(told.losses, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_balanced_terms_have_their_weights_share_of_the_gradient(make_whisper, make_batches, make_settings):
    """Of the step's whole batch, however it is accumulated; and the gradient is the sum of just these shares."""
    batches, accelerator = make_batches(100.0), ranks.accelerator("cpu", "fp32")
    terms, found = {"labels": 0.3, "ctc": 0.5, "soft": 1.0}, []
    order = np.argsort(batches.store.n_samples)
    short, long = order[:9], order[-2:]

    def step(objective, teach, indices):
        recording, feed = Recording(objective), (batches.collate(0, index) for index in indices)
        told = optimize(
            objective, recording, feed, lambda batch, phase: batch, teach,
            make_settings(accumulate=len(indices), clip_norm=1e9), 0, WHOLE, accelerator,
        )  # fmt: skip
        return told[1], {name: g for name, g in recording.gradients.items() if name.startswith("student")}

    for indices in ([np.concatenate([short, long])], [short, long]):
        objective, teach = distillation(make_whisper)
        for name in objective.terms.keys() - terms.keys():
            del objective.terms[name]
        objective.schedules = {name: Schedule.of(weight) for name, weight in terms.items()}
        objective.balance = Balance(3, 10)
        found.append(step(objective, teach, indices))
    (weights, gradients), (weights_2, gradients_2) = found
    assert weights == pytest.approx(weights_2, rel=1e-4)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, gradients_2[name], atol=1e-5), name

    objective.balance = None
    alone = {}
    for name in terms:
        objective.schedules = {other: Schedule.of(float(other == name)) for other in terms}
        alone[name] = step(objective, teach, [short, long])[1]
    norms = {name: math.sqrt(sum(float((g**2).sum()) for g in alone[name].values())) for name in terms}
    total = sum(weights[name] * norms[name] for name in terms)
    assert total == pytest.approx(sum(terms[name] * norms[name] for name in terms), rel=1e-3)
    for name, weight in terms.items():
        assert weights[name] * norms[name] / total == pytest.approx(weight / 1.8, rel=1e-3)
    for key, gradient in gradients.items():
        expected = sum(weights[name] * alone[name][key] for name in terms if key in alone[name])
        assert torch.allclose(gradient, expected, atol=1e-4), key


def test_the_losses_told_are_means_over_tokens(make_whisper, make_batches, make_settings):
    objective, _ = distillation(make_whisper)
    for name in objective.terms.keys() - {"labels", "ctc"}:
        del objective.terms[name]
    batch = make_batches().collate(0, np.arange(5))
    optimizer = Recording(objective)
    losses, _, seconds = optimize(
        objective,
        optimizer,
        iter([batch]),
        lambda b, phase: b,
        lambda b: [],
        make_settings(),
        0,
        WHOLE,
        ranks.accelerator("cpu", "fp32"),
    )
    n_tokens = sum(len(text.split()) + 1 for text in batch.texts)
    with torch.no_grad():
        sums = objective(batch, [])
    assert losses == pytest.approx({name: float(value) / n_tokens for name, value in sums.items()}, rel=1e-5)
    assert seconds == pytest.approx(float(batch.lengths_B.sum()) / 16000)


def test_gradients_are_clipped_and_weights_decay(make_whisper, make_batches, make_settings):
    objective, teach = distillation(make_whisper)
    recording = Recording(objective)
    batch = make_batches().collate(0, np.arange(5))
    optimize(objective, recording, iter([batch]), lambda b, phase: b, teach, make_settings(clip_norm=0.01), 0, WHOLE,
             ranks.accelerator("cpu", "fp32"))  # fmt: skip
    norm = math.sqrt(sum(float((g**2).sum()) for g in recording.gradients.values()))
    assert norm == pytest.approx(0.01, rel=1e-3)


# --- phases and parts ------------------------------------------------------------------------------------------------

PHASES = [
    {"steps": 2, "train": ["decoder", "ctc_head"], "snr": [20.0], "clean": 0.5, "weights": {"labels": 0.0}},
    {"steps": 2, "freeze": ["encoder.layers"], "learning_rate": 5e-4, "schedule": "constant", "warmup": 0.0},
    {},
]


def test_phases(make_whisper, make_batches, run_training, tmp_path):
    """Each phase changes its own weights, hears its own noise and learns at its own rate."""
    objective, teach = distillation(make_whisper)
    student, heard, states = objective.student, [], []

    def corrupt(batch, phase):
        heard.append((len(states) - 1, phase.start, phase.snr_db))
        return batch

    def remember():
        states.append({name: p.detach().clone() for name, p in student.named_parameters()})

    remember()
    run_training(
        objective, make_batches(), tmp_path, dict.fromkeys(range(1, 7), remember), corrupt, teach, phases=PHASES,
        validate_every=6,
    )  # fmt: skip
    changed = [
        {name for name in after if not torch.equal(before[name], after[name])}
        for before, after in itertools.pairwise(states)
    ]
    everything = {name for name, p in student.named_parameters() if p.requires_grad}
    encoder = {name for name in everything if ".encoder." in name}
    layers = {name for name in encoder if ".encoder.layers." in name}
    assert layers and layers < encoder < everything
    assert changed[0] | changed[1] == everything - encoder
    assert changed[2] | changed[3] == everything - layers
    assert changed[4] | changed[5] == everything
    assert heard == [(1, 0, [20.0]), (2, 2, None), (3, 2, None), (4, 4, None), (5, 4, None)]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in lines if "loss" in line]
    assert rates == pytest.approx([1e-3, 1e-3, 5e-4, 5e-4, 1e-3, 1e-3])


def test_a_phase_without_a_terms_weight_does_not_follow_it(make_whisper, make_batches, run_training, tmp_path):
    objective, _ = distillation(make_whisper)
    for name in objective.terms.keys() - {"labels"}:
        del objective.terms[name]
    states = [digest(objective)]
    run_training(
        objective, make_batches(), tmp_path, dict.fromkeys(range(1, 7), lambda: states.append(digest(objective))),
        weight_decay=0.0, phases=[{"steps": 2, "weights": {"labels": 0.0}}, {}],
    )  # fmt: skip
    assert states[0] == states[1] == states[2] and len(set(states)) == 5


@pytest.mark.parametrize("stops", [[1], [2], [3], [4, 5]])
def test_a_run_in_phases_resumes_inside_and_between_them(make_whisper, make_batches, run_training, tmp_path, stops):
    changes = {"phases": PHASES, "average": 0.8, "layer_decay": 0.7, "validate_every": 2}
    expected = noisy_run(make_whisper, make_batches, run_training, tmp_path / "whole", **changes)
    for stop in stops:
        with pytest.raises(Interrupted):
            noisy_run(make_whisper, make_batches, run_training, tmp_path / "cut", {stop: interrupt}, **changes)
    assert noisy_run(make_whisper, make_batches, run_training, tmp_path / "cut", **changes) == expected


def test_the_best_of_the_last_phase_is_the_result(make_ctc, make_batches, run_training, tmp_path):
    wers = iter([0.1, 0.9, 0.8, 0.85])
    told = run_training(
        Objective(make_ctc(1).train(), {"ctc": CTC()}, {"ctc": 1.0}), make_batches(), tmp_path, steps=8,
        validate_every=2, patience=1, phases=[{"steps": 0.25}, {}], validate=lambda student: next(wers),
    )  # fmt: skip
    assert told.best_wer == 0.8 and [step for step, _ in told.wers] == [2, 4, 6, 8]


def test_layers_are_unfrozen_from_the_top(make_whisper, make_batches, run_training, tmp_path):
    objective, teach = distillation(make_whisper)
    trained = []

    def remember():
        trained.append({n for n, p in objective.student.named_parameters() if p.requires_grad})

    run_training(
        objective, make_batches(), tmp_path, dict.fromkeys(range(1, 7), remember), teach=teach, unfreeze_every=2
    )  # fmt: skip
    names = [name for name, _ in objective.student.named_parameters()]
    decoder, encoder = [{n for n in names if f".{part}.layers." in n} for part in ("decoder", "encoder")]
    assert trained[0] == trained[1] and not trained[0] & (decoder | encoder) and trained[0]
    assert trained[2] == trained[3] == trained[0] | decoder  # it has one layer
    assert trained[4] == trained[5] == trained[2] | {n for n in encoder if ".layers.1." in n}


def test_the_average_of_the_weights_is_the_result(make_ctc, make_batches, run_training, tmp_path):
    student, states = make_ctc(1).train(), []

    def remember():
        states.append({name: p.detach().double().clone() for name, p in student.named_parameters()})

    run_training(
        Objective(student, {"ctc": CTC()}, {"ctc": 1.0}), make_batches(), tmp_path,
        dict.fromkeys(range(1, 5), remember), steps=4, validate_every=4, average=0.7,
    )  # fmt: skip
    expected = states[0]  # the first one starts the average
    for state in states[1:]:
        expected = {name: 0.7 * value + 0.3 * state[name] for name, value in expected.items()}
    for name, p in student.named_parameters():
        assert torch.allclose(p.double(), expected[name], atol=1e-6), name


# --- what changes over the training ----------------------------------------------------------------------------------


class Told(Term):
    """Remembers the shares of the training that it was told, and has the gradient 1."""

    def __init__(self):
        super().__init__()
        self.shares = []

    def at(self, share):
        self.shares.append(share)

    def count(self, batch):
        return torch.tensor(1.0)

    def forward(self, student, teacher, batch):
        return student["value"]


def test_weights_and_terms_follow_the_training(make_batches, make_settings):
    """A step's gradient has the weights of the share of the steps that are done before it."""
    student = torch.nn.Linear(1, 1, bias=False)
    student.forward = lambda *batch: {"value": student.weight.sum()}
    terms = {"a": Told(), "b": Told()}
    objective = Objective(student, terms, {"a": Schedule(2.0, 0.0), "b": 3.0})
    recording, batch = Recording(objective), make_batches().collate(0, np.arange(2))
    gradients = []
    for step in (0, 5, 9):
        optimize(objective, recording, iter([batch]), lambda b, phase: b, lambda b: [],
                 make_settings(steps=10, clip_norm=99.0), step, WHOLE, ranks.accelerator("cpu", "fp32"))  # fmt: skip
        gradients.append(recording.gradients["student.weight"].item())
    assert gradients == pytest.approx([5.0, 4.0, 3.2])
    assert terms["a"].shares == terms["b"].shares == [0.0, 0.0, 0.5, 0.9]


# --- noise alone -----------------------------------------------------------------------------------------------------


def test_noise_alone_has_labels_and_is_compared_with_nobody(make_whisper, make_batches):
    objective, teach = distillation(make_whisper)
    objective.student.eval()
    index = np.arange(8)
    batch = make_batches(only=0.4).collate(0, index)
    silent = ~batch.spoken_B
    assert 1 < silent.sum() < 7
    everybody = make_batches().collate(0, index)
    speakers = make_batches().collate(0, index[batch.spoken_B.numpy()])
    found, expected = ({name: v.item() for name, v in objective(b, teach(b)).items()} for b in (batch, speakers))
    for name, term in objective.terms.items():
        count = term.count(term.sees(batch))
        if term.teacher:
            assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-4)
            assert count.item() == pytest.approx(term.count(speakers).item())
            assert count < term.count(everybody)
        else:  # the end of text counts where there is nothing else to write
            assert found[name] > expected[name] or isinstance(term, VAT)  # of silence, which nothing perturbs
            assert count == term.count(speakers) + silent.sum()


def test_a_batch_of_noise_alone_has_a_gradient(make_whisper, make_batches):
    objective, teach = distillation(make_whisper)
    batch = make_batches(only=1.0).collate(0, np.arange(3))
    values = objective(batch, teach(batch))
    torch.stack(list(values.values())).sum().backward()
    assert values["labels"] > 0 and values["ctc"] > 0 and values["soft"] == values["hidden"] == 0
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)


# --- the student against itself --------------------------------------------------------------------------------------


def test_the_student_in_noise_is_compared_with_itself_without(make_whisper, make_batches):
    student = make_whisper(3)
    term = SoftTokens()
    term.bind(student, student)
    term.against = ITSELF
    objective = Objective(student, {"itself": term}, {"itself": 1.0})
    batch = make_batches().collate(0, np.arange(4))
    assert objective(batch, [])["itself"].item() == pytest.approx(0, abs=1e-5)
    batch.noisy_BT = batch.clean_BT + torch.linspace(-0.1, 0.1, batch.clean_BT.shape[1])
    value = objective(batch, [])["itself"]
    value.backward()
    found = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    clean = student(batch.clean_BT, batch.lengths_B, batch.labels_BL)["logits"].values_BND.detach()
    noisy = student(batch.noisy_BT, batch.lengths_B, batch.labels_BL)["logits"].values_BND
    valid = batch.labels_BL >= 0
    p, log_q = (clean[valid] / 2).softmax(-1), (noisy[valid] / 2).log_softmax(-1)
    expected = 4 * (p * (p.log() - log_q)).sum()
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-3) and expected.item() > 1e-3
    for name, gradient in found.items():
        assert torch.allclose(gradient, student.get_parameter(name).grad, atol=1e-4), name


def test_the_clean_view_takes_no_gradient_from_the_other_under_autocast(make_whisper, make_batches):
    """Autocast keeps the weights that it cast in a pass without gradients, so that pass must not be the first."""
    gradients = []
    for precision in ("fp32", "bf16"):
        student = make_whisper(3)
        term = SoftTokens()
        term.bind(student, student)
        term.against = ITSELF
        batch = make_batches().collate(0, np.arange(4))
        batch.noisy_BT = batch.clean_BT + torch.linspace(-0.1, 0.1, batch.clean_BT.shape[1])
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            value = Objective(student, {"itself": term}, {"itself": 1.0})(batch, [])["itself"]
        assert value.dtype == torch.float32
        value.backward()
        gradients.append({name: p.grad for name, p in student.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    layer = "hf.model.encoder.layers.0.fc1.weight"
    assert torch.cosine_similarity(*(g[layer].flatten() for g in gradients), dim=0) > 0.9


@pytest.mark.parametrize("against, passes", [(0, 1), (ITSELF, 2)])
def test_the_clean_view_is_made_only_where_it_is_asked_for(make_whisper, make_batches, against, passes):
    student, teacher = make_whisper(3), make_whisper(4)
    term = SoftTokens()
    term.bind(student, teacher)
    term.against = against
    objective = Objective(student, {"soft": term}, {"soft": 1.0})
    batch = make_batches().collate(0, np.arange(2))
    heard = []
    student.register_forward_pre_hook(lambda module, args: heard.append((args[0], torch.is_grad_enabled())))
    batch.noisy_BT = batch.clean_BT + 0.1
    objective(batch, [teacher(batch.clean_BT, batch.lengths_B, batch.labels_BL)])
    assert len(heard) == passes and heard[0][0] is batch.noisy_BT and heard[0][1]
    assert all(x is batch.clean_BT and not with_gradient for x, with_gradient in heard[1:])


def test_a_teacher_without_the_stream_is_named(make_whisper, make_ctc, make_batches):
    student, teacher = make_whisper(3), make_ctc(4)
    objective = Objective(student, {"soft": SoftTokens(), "labels": CrossEntropy()}, {"soft": 1.0, "labels": 1.0})
    batch = make_batches().collate(0, np.arange(2))
    with pytest.raises(ConfigError, match=r"stream logits, but that teacher gives ctc_logits, hidden.encoder;"):
        objective(batch, [teacher(batch.clean_BT, batch.lengths_B, batch.labels_BL)])


# --- stopping and going on -------------------------------------------------------------------------------------------


def noisy_run(make_whisper, make_batches, run_training, folder, at=None, balance_every=None, **settings):
    objective, teach = distillation(make_whisper, dropout=0.1, balance_every=balance_every)
    run_training(
        objective, make_batches(4.0, silence=0.3), folder, at, white_noise(), teach,
        validate=lambda student: int(digest(student)[:8], 16) / 2**32, **settings,  # a 'WER' that any weights have
    )  # fmt: skip
    return digest(objective)


def interrupt():
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_balanced_run_resumes_and_tells_its_weights(make_whisper, make_batches, run_training, tmp_path):
    changes = {"phases": [{"steps": 3, "train": ["decoder"], "weights": {"ctc": 0.0}}, {}], "balance_every": 2}
    expected = noisy_run(make_whisper, make_batches, run_training, tmp_path / "whole", **changes)
    for stop in (2, 3, 4):
        with pytest.raises(Interrupted):
            noisy_run(make_whisper, make_batches, run_training, tmp_path / "cut", {stop: interrupt}, **changes)
    assert noisy_run(make_whisper, make_batches, run_training, tmp_path / "cut", **changes) == expected
    assert noisy_run(make_whisper, make_batches, run_training, tmp_path / "fixed", phases=changes["phases"]) != expected
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    weights = [line["weight"] for line in lines if "loss" in line]
    assert len(weights) == 6
    assert weights[0]["ctc"] == weights[2]["ctc"] == 0.0 < weights[3]["ctc"]
    assert weights[2]["hidden"] == 1.0 != weights[3]["hidden"]  # the decoder alone has no gradient of it


@pytest.mark.parametrize("stops", [[1], [2], [3], [5], [1, 2, 4]])
def test_a_resumed_run_equals_an_uninterrupted_one(make_whisper, make_batches, run_training, tmp_path, stops):
    expected = noisy_run(make_whisper, make_batches, run_training, tmp_path / "whole", accumulate=2)
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    for stop in stops:
        with pytest.raises(Interrupted, match=f"stopped at step {stop} of 6, saved"):
            noisy_run(make_whisper, make_batches, run_training, tmp_path / "cut", {stop: interrupt}, accumulate=2)
        assert checkpoint.load(tmp_path / "cut" / "checkpoints" / "last")["step"] == stop
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    assert noisy_run(make_whisper, make_batches, run_training, tmp_path / "cut", accumulate=2) == expected
    whole, cut = ((tmp_path / run / "metrics.jsonl").read_text() for run in ("whole", "cut"))
    assert cut == whole and whole.count('"loss"') == 6


def test_a_resumed_run_tells_the_best_of_the_whole(make_ctc, make_batches, run_training, tmp_path):
    wers = iter([0.25, 0.5, 0.125])
    given = {"steps": 6, "validate_every": 2, "validate": lambda student: next(wers)}
    objective = Objective(make_ctc(), {"ctc": CTC()}, {"ctc": 1.0})
    with pytest.raises(Interrupted):
        run_training(objective, make_batches(), tmp_path, {3: interrupt}, **given)
    told = run_training(Objective(make_ctc(), {"ctc": CTC()}, {"ctc": 1.0}), make_batches(), tmp_path, **given)
    assert told.wers == [(4, 0.5), (6, 0.125)] and told.best_wers == [0.25, 0.125]


def test_what_was_told_after_the_checkpoint_is_told_again(make_whisper, make_batches, run_training, tmp_path):
    noisy_run(make_whisper, make_batches, run_training, tmp_path / "whole")
    with pytest.raises(Interrupted):
        noisy_run(make_whisper, make_batches, run_training, tmp_path / "cut", {3: interrupt})
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as metrics:  # as a kill leaves it
        metrics.write(
            '{"step": 4, "learning_rate": 1, "loss": {}}\n{"step": 4, "validation_wer": 0.5, "best": true}\n{"st'
        )
    noisy_run(make_whisper, make_batches, run_training, tmp_path / "cut")
    whole, cut = ((tmp_path / run / "metrics.jsonl").read_text() for run in ("whole", "cut"))
    assert cut == whole


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_resumed_run_on_a_gpu_goes_on_as_it_would_have(make_whisper, make_batches, run_training, tmp_path, precision):
    """To rounding: some gradients on CUDA are summed in any order. Dropout or a scaler gone astray shows far more."""
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")

    def run(folder, at=None):
        objective, teach = distillation(make_whisper, dropout=0.3, device="cuda")
        told = run_training(
            objective, make_batches(4.0, silence=0.3), folder, at, white_noise("cuda"), teach, device="cuda",
            precision=precision,
        )  # fmt: skip
        return [sum(losses.values()) for losses in told.losses]

    whole = run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", {4: interrupt})
    assert run(tmp_path / "cut") == pytest.approx(whole[4:], rel=5e-3)


def test_a_finished_training_is_not_continued(make_whisper, make_batches, run_training, tmp_path):
    first = noisy_run(make_whisper, make_batches, run_training, tmp_path)
    told = {}
    again = noisy_run(
        make_whisper, make_batches, run_training, tmp_path, {s: lambda s=s: told.update({s: 1}) for s in range(9)}
    )
    assert again == first and not told


def test_what_the_resume_test_rests_on(make_whisper, make_batches, run_training, tmp_path):
    """The seed, and the readers' number, are told apart by the hash of the final weights."""
    runs = [
        noisy_run(make_whisper, make_batches, run_training, tmp_path / str(i), **kwargs)
        for i, kwargs in enumerate([{}, {"seed": 1}, {"workers": 2}])
    ]
    assert runs[0] != runs[1] and runs[0] == runs[2]


def test_a_loss_that_is_not_finite(make_ctc, make_batches, run_training, tmp_path):
    class Explodes(CTC):
        def forward(self, student, teacher, batch):
            return super().forward(student, teacher, batch) * (float("nan") if self.steps > 2 else 1.0)

    term = Explodes()
    term.steps = 0

    def count(batch, phase):
        term.steps += 1
        return batch

    objective = Objective(make_ctc(1).train(), {"ctc": term}, {"ctc": 1.0})
    with pytest.raises(NumericsError, match=r"not finite at step 3 .*ctc.*learning_rate"):
        run_training(objective, make_batches(), tmp_path, corrupt=count, validate_every=1)
    kept = checkpoint.load(tmp_path / "checkpoints" / "last")
    assert kept["step"] == 2 and all(torch.isfinite(v).all() for v in kept["objective"].values())


# --- a distillation as the stage does it -----------------------------------------------------------------------------


def fit_distillation(speech, folder, student, teachers, *overrides):
    """Train as the stage does, on prepared models."""
    from omegaconf import OmegaConf

    from rkd.stages.plan import Plan
    from rkd.stages.training import fit

    cfg = compose("distill", [
        "noise=white", "trainer.steps=3", "trainer.batch_seconds=6", "trainer.validate_every=2",
        "trainer.validate_utterances=2", "trainer.clean=0", f"root={folder}", "device=cpu", "log_every=1", *overrides,
    ])  # fmt: skip
    plan = Plan(OmegaConf.to_container(cfg), "distill")
    plan.__dict__["speech"] = SimpleNamespace(folder=speech)
    fit(plan, "distill", plan.cfg, student, teachers, None, folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("loss", ["kd_hidden", "kd_attention", "kd_relations"])
def test_the_teacher_is_frozen(make_whisper, speech, tmp_path, loss):
    teacher, student = make_whisper(1, d_model=48, dropout=0.1).train(), make_whisper(2, dropout=0.1)
    before, student_before = digest(teacher), digest(student)
    fit_distillation(speech, tmp_path, student, [teacher], f"loss={loss}", "loss.teacher_input=noisy")
    assert digest(teacher) == before and digest(student) != student_before
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())


def test_several_teachers(make_whisper, speech, tmp_path):
    teachers = [make_whisper(1, d_model=48), make_whisper(4, encoder_layers=1)]
    told = fit_distillation(
        speech, tmp_path, make_whisper(2), teachers, "teacher.path=[a,b]", "teacher.weights=[3,1]", "loss=kd_hidden",
        "trainer.phases=[{steps: 1, weights: {soft: 0.5}}, {}]",
    )  # fmt: skip
    assert [set(losses) for losses in told] == 3 * [
        {"labels", "ctc", "soft_0", "soft_1", "hidden_0", "hidden_1"}
    ]  # fmt: skip
    assert told[0]["soft_0"] != told[0]["soft_1"]


def test_a_student_learns_from_itself_alone(make_whisper, speech, tmp_path):
    told = fit_distillation(speech, tmp_path, make_whisper(2), [], "loss=consistency")
    assert all(set(losses) == {"labels", "ctc", "consistency"} and losses["consistency"] > 0 for losses in told)


def test_a_batch_too_small_for_its_ranks_is_refused(make_whisper, speech):
    student = make_whisper(1)
    window, longest = student.window_seconds, assemble.longest_seconds(speech, ["train"])
    assert longest < window
    assemble.check_batch(speech, {"batch_seconds": window, "silence": 0.1}, 1, window)
    with pytest.raises(ConfigError, match=rf"up to {window} s \(trainer\.silence .*; set it to {window} or more"):
        assemble.check_batch(speech, {"batch_seconds": longest, "silence": 0.1}, 1, window)
    assemble.check_batch(speech, {"batch_seconds": math.ceil(3 * longest), "silence": 0}, 2, window)
    with pytest.raises(
        ConfigError, match=rf"up to {longest:.3g} s on 2 processes; set it to {math.ceil(3 * longest)} or"
    ):
        assemble.check_batch(speech, {"batch_seconds": 2 * longest, "silence": 0.1}, 2)
