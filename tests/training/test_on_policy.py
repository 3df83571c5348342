"""The student's own transcripts as labels: which batches, what is drawn, and what is trained on them."""

# B batch, L label tokens, V vocabulary

import hashlib
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from loss_streams import log_softmax
from model_clips import padded

from rkd import ranks
from rkd.errors import Interrupted
from rkd.losses import CTC, FGSM, CrossEntropy, SoftTokens
from rkd.models.whisper import Drawing
from rkd.phases import Phase
from rkd.tokenizer import text_tokens
from rkd.training.objective import Objective
from rkd.training.on_policy import OnPolicy
from rkd.training.trainer import optimize


def test_a_share_of_the_batches_by_their_number_and_the_seed(taught):
    batch = replace(taught.batch)

    def chosen(seed, share, n=400):
        policy = OnPolicy(taught.model, share, 0.0, seed)
        policy.student = Silent()
        return [policy(batch, number).on_policy for number in range(n)]

    assert sum(chosen(0, 0.25)) == pytest.approx(100, abs=30)
    assert chosen(0, 0.25) == chosen(0, 0.25) != chosen(1, 0.25)
    assert not any(chosen(0, 0.0)) and all(chosen(0, 1.0))
    # A larger share has the batches of a smaller one among its own.
    assert all(large for small, large in zip(chosen(0, 0.25), chosen(0, 0.6), strict=True) if small)


class Silent(torch.nn.Module):
    def sample(self, waveform_BT, lengths_B, temperature, seeds_B):
        return [[0]] * len(lengths_B)


def test_without_a_temperature_it_is_what_the_student_writes(taught):
    model, batch = taught.model, replace(taught.batch)
    own = OnPolicy(model, 1.0, 0.0, 0)(batch, 3)
    written = model.write(batch.noisy_BT, batch.lengths_B)
    assert [[t for t in row if t >= 0] for row in own.labels_BL.tolist()] == written
    assert own.on_policy and not batch.on_policy and own.clean_BT is batch.clean_BT


def test_it_hears_what_the_student_hears(taught):
    batch = replace(taught.batch, noisy_BT=torch.zeros_like(taught.batch.clean_BT))
    own = OnPolicy(taught.model, 1.0, 0.0, 0)(batch, 3)
    written = taught.model.write(batch.noisy_BT, batch.lengths_B)
    assert [[t for t in row if t >= 0] for row in own.labels_BL.tolist()] == written
    assert written != taught.model.write(batch.clean_BT, batch.lengths_B)


def test_draws_belong_to_the_utterance(make_whisper, taught, device):
    model, batch = make_whisper(3).to(device), taught.batch

    def sample(clips, seeds):
        waveform_BT, lengths_B = padded(clips)
        return model.sample(waveform_BT.to(device), lengths_B.to(device), 1.0, seeds)

    clips = [batch.clean_BT[i, : batch.lengths_B[i]] for i in range(4)]
    together = sample(clips, [5, 6, 7, 8])
    for i, x_T in enumerate(clips):
        assert sample([x_T], [5 + i]) == [together[i]]
    assert together != sample(clips, [15, 16, 17, 18])
    text = set(text_tokens(model.tokenizer).values())
    assert all(set(row) <= text for row in together)
    end = model.tokenizer.eos_token_id
    assert all(end not in row[:-1] for row in together)


def test_nothing_of_the_training_is_touched(make_whisper, taught):
    model = make_whisper(3, dropout=0.5).train()
    before = torch.get_rng_state()
    first = OnPolicy(model, 1.0, 1.0, 0)(replace(taught.batch), 3).labels_BL
    assert model.training and torch.equal(torch.get_rng_state(), before)
    assert torch.equal(OnPolicy(model, 1.0, 1.0, 0)(replace(taught.batch), 3).labels_BL, first)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_from_the_softmax(temperature):
    logits_V, allowed, n = torch.tensor([1.0, -0.5, 0.3, 9.0, 0.0]), [0, 1, 2, 4], 4000
    drawing = Drawing(allowed, temperature, list(range(n)), torch.device("cpu"))
    drawn = drawing(torch.zeros(n, 1), logits_V.expand(n, -1)).argmax(-1)
    expected = np.exp(log_softmax(logits_V[allowed].double().numpy() / temperature))
    found = np.bincount(drawn.numpy(), minlength=5)
    assert found[3] == 0 and found[allowed] / n == pytest.approx(expected, abs=0.04)


def test_without_a_temperature_the_likeliest_is_taken():
    scores_BV = Drawing([0, 2], 0.0, [1, 2], torch.device("cpu"))(torch.zeros(2, 1), torch.tensor([[1.0, 9, 2]] * 2))
    assert scores_BV.argmax(-1).tolist() == [2, 2]


# --- in the loop -----------------------------------------------------------------------------------------------------


def distillation(make_whisper):
    teacher, student = make_whisper(7), make_whisper(1, dropout=0.1).train()
    terms = {"labels": CrossEntropy(), "ctc": CTC(), "soft": SoftTokens(), "fgsm": FGSM()}
    for term in terms.values():
        term.bind(student, teacher)

    @torch.no_grad()
    def teach(batch):
        return [teacher(batch.clean_BT, batch.lengths_B, batch.labels_BL)]

    return Objective(student, terms, {"labels": 0.3, "ctc": 0.3, "soft": 0.7, "fgsm": 0.1}), teach


class Keeps:
    """Stands for an optimizer: changes nothing, and keeps the gradients."""

    def __init__(self, objective):
        self.objective = objective

    def step(self):
        self.gradients = {n: p.grad for n, p in self.objective.named_parameters() if p.grad is not None}

    def zero_grad(self):
        self.objective.zero_grad(set_to_none=True)


def test_teacher_and_student_are_compared_on_its_own_tokens(make_whisper, make_batches, make_settings):
    objective, teach = distillation(make_whisper)
    objective.student.hf.config.dropout = 0.0
    objective.eval()
    policy = OnPolicy(objective.student, 1.0, 1.0, 0)
    batch = make_batches().collate(0, np.arange(4))
    whole = Phase(0, 6, "all", [], 1e-3, 0.2, "cosine", 0.0, None, None, {})
    keeps = Keeps(objective)
    losses, _, _ = optimize(
        objective, keeps, iter([batch]), lambda b, phase: b, teach, make_settings(clip_norm=1e9), 0, whole,
        ranks.accelerator("cpu", "fp32"), policy,
    )  # fmt: skip
    own = policy(batch, 0)
    with torch.no_grad():
        ours = objective.student(own.noisy_BT, own.lengths_B, own.labels_BL)["logits"].values_BND
        theirs = teach(own)[0]["logits"].values_BND
    valid = own.labels_BL >= 0
    p, q = (log_softmax(x[valid].double().numpy() / 2) for x in (theirs, ours))
    expected = 4 * (np.exp(p) * (p - q)).sum() / int(valid.sum())
    assert losses["soft"] == pytest.approx(expected, rel=1e-3) and expected > 0
    assert losses["labels"] == losses["ctc"] == losses["fgsm"] == 0.0
    # The gradient is that of the divergence alone, and none goes through the writing.
    soft = objective.terms["soft"](objective.student(own.noisy_BT, own.lengths_B, own.labels_BL), teach(own)[0], own)
    (0.7 * soft / valid.sum()).backward()
    expected = {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}
    assert expected.keys() == keeps.gradients.keys() and max(float(g.abs().max()) for g in expected.values()) > 1e-3
    assert all(torch.allclose(keeps.gradients[n], g, atol=1e-5) for n, g in expected.items())


def test_labels_count_where_they_are_labels(make_whisper, make_batches, make_settings):
    """Accumulated with a batch of its own transcripts, the labels' mean is over the labelled batch alone."""
    objective, teach = distillation(make_whisper)
    objective.eval()
    first, second = (make_batches().collate(0, np.arange(i, i + 3)) for i in (0, 3))
    numbers = []

    def relabel(batch, number):
        numbers.append(number)
        return OnPolicy(objective.student, float(number == 5), 0.0, 0)(batch, number)

    whole = Phase(0, 6, "all", [], 1e-3, 0.2, "cosine", 0.0, None, None, {})
    losses, _, _ = optimize(
        objective, Keeps(objective), iter([first, second]), lambda b, phase: b, teach, make_settings(accumulate=2), 2,
        whole, ranks.accelerator("cpu", "fp32"), relabel,
    )  # fmt: skip
    with torch.no_grad():
        alone = objective(first, teach(first))
    assert numbers == [4, 5]
    assert losses["labels"] == pytest.approx(float(alone["labels"]) / int(first.n_tokens), rel=1e-4)


def own_run(make_whisper, make_batches, run_training, folder, at=None):
    objective, teach = distillation(make_whisper)
    relabel = OnPolicy(objective.student, 0.5, 1.0, 3)
    run_training(objective, make_batches(4.0), folder, at, teach=teach, relabel=relabel, accumulate=2, steps=4)
    total = hashlib.sha256()
    for name, value in sorted(objective.state_dict().items()):
        total.update(name.encode() + value.numpy(force=True).tobytes())
    return total.hexdigest()


@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_run_equals_an_uninterrupted_one(make_whisper, make_batches, run_training, tmp_path, stop):
    expected = own_run(make_whisper, make_batches, run_training, tmp_path / "whole")
    with pytest.raises(Interrupted):
        own_run(make_whisper, make_batches, run_training, tmp_path / "cut",
                {stop: lambda: os.kill(os.getpid(), signal.SIGTERM)})  # fmt: skip
    assert own_run(make_whisper, make_batches, run_training, tmp_path / "cut") == expected
