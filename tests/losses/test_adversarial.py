"""Perturbations against independent computations in float64, and what holds for them on real models."""

# B batch, T samples, R rows, V vocabulary

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_streams import log_softmax, randn
from torch import nn

from rkd.data.batches import Batch
from rkd.draws import Draws
from rkd.errors import ConfigError
from rkd.losses import FGSM, VAT, CrossEntropy
from rkd.models.base import Stream
from rkd.models.denoisers.mask import MaskDenoiser
from rkd.models.enhanced import Enhanced
from rkd.training.objective import Objective

N_SAMPLES, N_TOKENS, LENGTHS = 12, 4, [12, 9]


class Softmax(nn.Module):
    """A student of one linear layer from a clip's samples to one token's logits, in float64."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.weight_VT = nn.Parameter(randn(N_TOKENS, N_SAMPLES, seed=1, scale=scale).double())

    def forward(self, x_BT, lengths_B, labels_BL):
        values = (x_BT @ self.weight_VT.T)[:, None]
        return {"logits": Stream(values, torch.ones(len(x_BT), dtype=torch.long), None)}


def clips(seed=0, loudness=(0.1, 0.7)):
    """Return as much of a batch as a search looks at; what lies beyond the speech is not silent."""
    batch = SimpleNamespace(
        noisy_BT=randn(2, N_SAMPLES, seed=seed).double() * torch.tensor(loudness).double()[:, None],
        lengths_B=torch.tensor(LENGTHS), speech_lengths_B=torch.tensor(LENGTHS), labels_BL=torch.tensor([[2], [0]]),
        before_BP=None, draws=Draws(seed, 0, [11, 12]),
    )  # fmt: skip
    batch.through = partial(Batch.through, batch)
    return batch


def found(term, student, batch):
    return term.perturbed(student, batch) - batch.noisy_BT


# --- parity ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("snr_db", [30.0, 6.0])
def test_fgsm_of_a_linear_model(snr_db):
    """Goodfellow et al. 2015: the gradient of the cross-entropy is W^T (softmax(W x) - y)."""
    student, batch = Softmax(), clips()
    r_BT = found(FGSM("logits", snr_db), student, batch).numpy()
    w_VT = student.weight_VT.detach().numpy()
    for r_T, x_T, length, label in zip(r_BT, batch.noisy_BT.numpy(), LENGTHS, [2, 0], strict=True):
        gradient_T = w_VT.T @ (np.exp(log_softmax(w_VT @ x_T)) - np.eye(N_TOKENS)[label])
        eps = np.sqrt(np.mean(x_T[:length] ** 2)) / 10 ** (snr_db / 20)
        assert r_T[:length] == pytest.approx(eps * np.sign(gradient_T[:length]), rel=1e-9)
        assert not r_T[length:].any()


def test_vat_finds_where_the_divergence_grows_most():
    """Miyato et al. 2018: the dominant eigenvector of the second derivative, here W^T (diag(p) - p p^T) W."""
    student, batch = Softmax(0.5), clips()
    w_VT = student.weight_VT.detach().numpy()
    r_BT = found(VAT("logits", 30.0, 100.0, iterations=40), student, batch).numpy()
    for r_T, x_T, length in zip(r_BT, batch.noisy_BT.numpy(), LENGTHS, strict=True):
        p = np.exp(log_softmax(w_VT @ x_T))
        w = w_VT[:, :length]
        values, vectors = np.linalg.eigh(w.T @ (np.diag(p) - np.outer(p, p)) @ w)
        assert values[-1] > 1.1 * values[-2]  # or there would be no one direction
        assert abs(r_T[:length] @ vectors[:, -1]) / np.linalg.norm(r_T) == pytest.approx(1, abs=1e-4)
        assert not r_T[length:].any()


def test_one_iteration_of_vat():
    """The gradient at xi times the random direction, by hand: W^T (q - p)."""
    student, batch = Softmax(), clips()
    w_VT, xi_snr_db = student.weight_VT.detach().numpy(), 20.0
    r_BT = found(VAT("logits", 30.0, xi_snr_db), student, batch).numpy()
    for row, (x_T, length) in enumerate(zip(batch.noisy_BT.numpy(), LENGTHS, strict=True)):
        generator = torch.Generator().manual_seed(int(batch.draws.below("adversarial", 2**53)[row]))
        d_T = np.zeros(N_SAMPLES)
        d_T[:length] = torch.randn(length, generator=generator).numpy()
        step_T = np.linalg.norm(x_T[:length]) * 10 ** (-xi_snr_db / 20) * d_T / np.linalg.norm(d_T)
        p, q = (np.exp(log_softmax(w_VT @ x)) for x in (x_T, x_T + step_T))
        gradient_T = (w_VT.T @ (q - p))[:length]
        expected = np.linalg.norm(x_T[:length]) * 10**-1.5 * gradient_T / np.linalg.norm(gradient_T)
        assert r_BT[row, :length] == pytest.approx(expected, rel=1e-6)


def test_the_divergence_that_vat_asks_for():
    p, q = randn(2, 3, 5, seed=1).double(), randn(2, 3, 5, seed=2).double().requires_grad_()
    lengths_B = torch.tensor([3, 1])

    def value(q):
        return VAT("ctc_logits")(
            {"ctc_logits": Stream(q, lengths_B, 640)}, {"ctc_logits": Stream(p, lengths_B, 640)}, None
        )

    rows = [(0, 0), (0, 1), (0, 2), (1, 0)]
    log_p, log_q = log_softmax(p.numpy()), log_softmax(q.detach().numpy())
    expected = sum(float((np.exp(log_p[i]) * (log_p[i] - log_q[i])).sum()) for i in rows)
    assert value(q).item() == pytest.approx(expected, rel=1e-9)
    assert torch.autograd.gradcheck(value, [q])
    value(q).backward()
    assert q.grad[0].any() and not q.grad[1, 1:].any()


# --- laws ------------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 60), st.floats(1e-3, 10))
@pytest.mark.parametrize("kind", [FGSM, VAT])
def test_the_level_is_the_one_asked_for(kind, seed, snr_db, loudness):
    batch = clips(seed, (loudness, 0.3))
    r_BT = found(kind("logits", snr_db), Softmax(), batch)
    for r_T, x_T, length in zip(r_BT, batch.noisy_BT, LENGTHS, strict=True):
        level_db = 20 * torch.log10(x_T[:length].norm() / r_T[:length].norm()).item()
        assert level_db == pytest.approx(snr_db, abs=1e-4)


@pytest.mark.parametrize("kind", [FGSM, VAT])
def test_silence_stays_silent(kind):
    batch = clips(loudness=(0.0, 0.5))
    r_BT = found(kind("logits", 10.0), Softmax(), batch)
    assert torch.isfinite(r_BT).all() and not r_BT[0].any() and r_BT[1].any()


def test_another_stream_is_refused():
    with pytest.raises(ConfigError, match="expected logits, ctc_logits"):
        FGSM("waveform")


# --- models ----------------------------------------------------------------------------------------------------------

STUDENTS = ["whisper", "ctc", "mask + ctc"]
TERMS = {"fgsm": FGSM, "vat": VAT}


@pytest.fixture
def make(make_whisper, make_ctc):
    def make_student(name, **shape):
        student = make_whisper(3, **shape) if name == "whisper" else make_ctc(3, **shape)
        return Enhanced(student, MaskDenoiser(width=8, layers=1), 0.9) if "mask" in name else student

    return make_student


def bound(kind, student, **options):
    term = TERMS[kind]("logits" if "decoder" in student.depth else "ctc_logits", **options)
    term.bind(student, None)
    return term


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("kind", TERMS)
def test_a_clip_is_perturbed_as_if_alone(make, make_batches, name, kind):
    student, batches = make(name).train(), make_batches(silence=0.5)
    term = bound(kind, student, snr_db=20.0)
    together = batches.collate(0, np.arange(4))
    r_BT = found(term, student, together)
    for row in range(4):
        alone = batches.collate(0, np.array([row]))
        n = int(alone.speech_lengths_B)
        r_T = found(term, student, alone)[0, :n]
        # The sign of a gradient that is almost zero is anybody's guess.
        assert (r_BT[row, :n] - r_T).norm() < 0.1 * r_T.norm()
        assert not r_BT[row, n:].any()


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("kind", TERMS)
def test_it_harms_more_than_noise_of_its_level(make, make_batches, name, kind):
    student, batch = make(name), make_batches().collate(0, np.arange(4))
    batch.noisy_BT = batch.clean_BT + 0.02 * torch.randn_like(batch.clean_BT)  # log-mels of silence mind any noise
    term = bound(kind, student, snr_db=30.0)
    r_BT = found(term, student, batch)
    noise_BT = torch.where(r_BT != 0, torch.randn_like(r_BT), 0.0)
    noise_BT *= (r_BT.norm(dim=1) / noise_BT.norm(dim=1))[:, None]
    with torch.no_grad():
        itself, against, random = (
            student(batch.noisy_BT + x_BT, batch.lengths_B, batch.labels_BL) for x_BT in (0.0, r_BT, noise_BT)
        )
        harm = [float(term(streams, itself, batch) - term(itself, itself, batch)) for streams in (against, random)]
    assert harm[0] > 10 * abs(harm[1])


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("kind", TERMS)
def test_the_search_is_without_dropout_and_in_float32(make, make_batches, name, kind):
    """And it leaves no trace: neither gradients, nor modes, nor random numbers."""
    student, batch = make(name, dropout=0.5), make_batches().collate(0, np.arange(3))
    term = bound(kind, student)
    expected_BT = term.perturbed(student, batch)
    student.train()
    frozen = next(module for module in student.modules() if isinstance(module, nn.Dropout | nn.LayerNorm)).eval()
    modes, state = [m.training for m in student.modules()], torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.allclose(term.perturbed(student, batch), expected_BT, atol=1e-6)
    assert [m.training for m in student.modules()] == modes and not frozen.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in student.parameters())


def test_what_the_student_wrote_is_no_label(make, make_batches):
    student, batch = make("whisper"), replace(make_batches().collate(0, np.arange(2)), on_policy=True)
    term = bound("fgsm", student)
    assert not term.applies(batch) and Objective(student, {"fgsm": term}, {"fgsm": 1.0})(batch, [])["fgsm"] == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", TERMS)
def test_the_gradient_is_that_of_the_loss_on_the_perturbed_speech(make, make_batches, kind, precision):
    student, batch = make("whisper"), make_batches().collate(0, np.arange(4))
    student.requires_grad_(False).hf.model.decoder.requires_grad_(True)  # frozen parts
    term = bound(kind, student)
    noisy_BT = term.perturbed(student, batch)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        value = Objective(student, {"labels": CrossEntropy(), kind: term}, {"labels": 0.5, kind: 0.5})(batch, [])[kind]
    value.backward()
    gradients = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    assert gradients and all(".decoder." in name for name in gradients)
    student.zero_grad()
    itself, against = (student(x, batch.lengths_B, batch.labels_BL) for x in (batch.noisy_BT, noisy_BT))
    expected = term(against, {k: Stream(s.values_BND.detach(), s.lengths_B, None) for k, s in itself.items()}, batch)
    expected.backward()
    if precision == "fp32":
        assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    for name, gradient in gradients.items():
        if precision == "fp32":
            assert torch.allclose(gradient, student.get_parameter(name).grad, atol=1e-5), name


@pytest.mark.gpu
@pytest.mark.parametrize("kind", TERMS)
def test_recurrent_layers_on_a_gpu(make, make_batches, kind):
    """cuDNN gives recurrent layers no gradient in eval mode."""
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    student = make("mask + ctc").eval().cuda()
    batch = make_batches().collate(0, np.arange(3))
    cpu_BT = bound(kind, student.cpu()).perturbed(student, batch)
    found_BT = bound(kind, student.cuda()).perturbed(student, batch.to(torch.device("cuda"))).cpu()
    assert (found_BT - cpu_BT).norm() < 0.1 * (cpu_BT - batch.noisy_BT).norm()
