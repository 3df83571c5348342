"""The training loop: sums that batching, accumulation and ranks do not change, and a resume that is exact."""

import hashlib
import json
import math
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rkd import assemble, checkpoint
from rkd.config import compose
from rkd.errors import ConfigError, Interrupted, NumericsError
from rkd.losses import CTC, CrossEntropy, Hidden, TokenKL
from rkd.noise import Coloured, Corruption, Resources
from rkd.trainer import Objective, learning_rate_factor, optimize, parameter_groups


def digest(module):
    total = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        total.update(name.encode() + value.numpy(force=True).tobytes())
    return total.hexdigest()


def white_noise(device="cpu"):
    white = Coloured(0)
    white.load(Resources("train", lambda *k: [], lambda seconds: {}, torch.device(device)))
    how = Corruption({"white": white}, {"white": 1.0}, {"none": 0.2, "noise": 0.8}, [5.0, 10.0])
    return lambda batch: assemble.corrupt(batch, how)


def distillation(make_whisper, dropout=0.0, device="cpu"):
    """Return an objective with every kind of term, and the teacher's part of it."""
    teacher, student = make_whisper(7, d_model=48).to(device), make_whisper(1, dropout=dropout).train()
    terms = {"labels": CrossEntropy(), "ctc": CTC(), "soft": TokenKL(), "hidden": Hidden()}
    torch.manual_seed(5)
    for term in terms.values():
        term.bind(student, teacher)
    weights = {"labels": 0.3, "ctc": 0.3, "soft": 0.7, "hidden": 1.0}

    @torch.no_grad()
    def teach(batch):
        return teacher(batch.clean_BT, batch.lengths_B, batch.labels_BL)

    return Objective(student, terms, weights).to(device), teach


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

    def corrupt(batch):
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
    batches, accelerator = make_batches(100.0), assemble.accelerator("cpu", "fp32")
    order = np.argsort(batches.store.n_samples)
    short, long = order[:9], order[-2:]  # uneven in number and in length: a mean of means would be far off
    found = []
    for accumulate, indices in ((1, [np.concatenate([short, long])]), (2, [short, long])):
        recording = Recording(objective)
        feed = (batches.collate(0, index) for index in indices)
        losses, seconds = optimize(

                       objective, recording, feed,
                       lambda batch: batch, teach, make_settings(accumulate=accumulate, clip_norm=1e9), 0,
            accelerator,
        )  # fmt: skip
        found.append((losses, seconds, recording.gradients))
    (one, one_seconds, one_gradients), (two, two_seconds, two_gradients) = found
    assert one == pytest.approx(two, rel=1e-5) and one_seconds == pytest.approx(two_seconds)
    assert one_gradients.keys() == two_gradients.keys()
    for name, gradient in one_gradients.items():
        assert torch.allclose(gradient, two_gradients[name], atol=1e-5), name
    assert max(float(g.abs().max()) for g in one_gradients.values()) > 1e-2  # there was something to compare


def test_the_losses_told_are_means_over_tokens(make_whisper, make_batches, make_settings):
    objective, _ = distillation(make_whisper)
    del objective.terms["soft"], objective.terms["hidden"]
    batch = make_batches().collate(0, np.arange(5))
    optimizer = Recording(objective)
    losses, seconds = optimize(
        objective,
        optimizer,
        iter([batch]),
        lambda b: b,
        lambda b: {},
        make_settings(),
        0,
        assemble.accelerator("cpu", "fp32"),
    )
    n_tokens = sum(len(text.split()) + 1 for text in batch.texts)
    with torch.no_grad():
        sums = objective(batch, {})
    assert losses == pytest.approx({name: float(value) / n_tokens for name, value in sums.items()}, rel=1e-5)
    assert seconds == pytest.approx(float(batch.lengths_B.sum()) / 16000)


def test_gradients_are_clipped_and_weights_decay(make_whisper, make_batches, make_settings):
    objective, teach = distillation(make_whisper)
    recording = Recording(objective)
    batch = make_batches().collate(0, np.arange(5))
    optimize(objective, recording, iter([batch]), lambda b: b, teach, make_settings(clip_norm=0.01), 0,
             assemble.accelerator("cpu", "fp32"))  # fmt: skip
    norm = math.sqrt(sum(float((g**2).sum()) for g in recording.gradients.values()))
    assert norm == pytest.approx(0.01, rel=1e-3)
    decayed, spared = parameter_groups(objective, 0.1)
    assert decayed["weight_decay"] == 0.1 and all(p.ndim > 1 for p in decayed["params"])
    assert spared["weight_decay"] == 0.0 and all(p.ndim <= 1 for p in spared["params"])
    counted = sum(p.numel() for group in (decayed, spared) for p in group["params"])
    assert counted == sum(p.numel() for p in objective.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("linear", [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("constant", [0.5, 1.0] + 8 * [1.0]),
        ("cosine", [0.5, 1.0] + [0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]),
    ],
)
def test_the_learning_rate(make_settings, schedule, expected):
    settings = make_settings(steps=10, warmup=0.2, schedule=schedule)
    assert [learning_rate_factor(step, settings) for step in range(10)] == pytest.approx(expected)
    assert learning_rate_factor(0, make_settings(steps=10, warmup=0.0, schedule=schedule)) == 1.0


# --- stopping and going on -------------------------------------------------------------------------------------------


def noisy_run(make_whisper, make_batches, run_training, folder, at=None, **settings):
    objective, teach = distillation(make_whisper, dropout=0.1)
    run_training(
        objective, make_batches(4.0, silence=0.3), folder, at, white_noise(), teach,
        validate=lambda student: int(digest(student)[:8], 16) / 2**32, **settings,  # a 'WER' that any weights have
    )  # fmt: skip
    return digest(objective)


def interrupt():
    os.kill(os.getpid(), signal.SIGTERM)


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
    losses = []
    for run in ("whole", "cut"):
        lines = [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        losses.append({line["step"]: line["loss"] for line in lines if "loss" in line})
    assert losses[0] == losses[1] and sorted(losses[0]) == [1, 2, 3, 4, 5, 6]


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

    def count(batch):
        term.steps += 1
        return batch

    objective = Objective(make_ctc(1).train(), {"ctc": term}, {"ctc": 1.0})
    with pytest.raises(NumericsError, match=r"not finite at step 3 .*ctc.*learning_rate"):
        run_training(objective, make_batches(), tmp_path, corrupt=count, validate_every=1)
    kept = checkpoint.load(tmp_path / "checkpoints" / "last")
    assert kept["step"] == 2 and all(torch.isfinite(v).all() for v in kept["objective"].values())


# --- a distillation as the stage does it -----------------------------------------------------------------------------


def test_the_teacher_is_frozen(make_whisper, speech, tmp_path):
    from rkd.stages.plan import Plan
    from rkd.stages.training import fit

    cfg = compose("distill", [
        "noise=white", "loss=kd_hidden", "trainer.steps=3", "trainer.batch_seconds=6", "trainer.validate_every=2",
        "trainer.validate_utterances=2", "trainer.clean=0", f"root={tmp_path}", "device=cpu",
        "loss.teacher_input=noisy",
    ])  # fmt: skip
    from omegaconf import OmegaConf

    plan = Plan(OmegaConf.to_container(cfg), "distill")
    plan.__dict__["speech"] = SimpleNamespace(folder=speech)
    teacher, student = make_whisper(1, d_model=48, dropout=0.1).train(), make_whisper(2, dropout=0.1)
    before, student_before = digest(teacher), digest(student)
    fit(plan, "distill", plan.cfg, student, teacher, None, tmp_path)
    assert digest(teacher) == before and digest(student) != student_before
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())


def test_a_batch_too_small_for_its_ranks_is_refused():
    assemble.check_batch(8, 4, 1)
    with pytest.raises(ConfigError, match=r"trainer\.batch_seconds=8"):
        assemble.check_batch(8, 9, 1)
