"""Adversarial training: the student's output on speech that is perturbed against it.

A perturbation is searched for each utterance alone, in float32 and without dropout: in half precision, or between two
dropout masks, a small change of the input is lost in what the output does anyway. The loss of what is found is computed
as every other, in the precision and with the dropout of the training.

Shapes: B batch, T samples, R rows (the valid tokens or frames of a batch), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from rkd.data.batches import Batch
from rkd.draws import Draws
from rkd.losses.base import Term, at_least_float32
from rkd.losses.labels import CTC, CrossEntropy
from rkd.losses.layers import check_word
from rkd.losses.soft import kl
from rkd.masks import valid_mask
from rkd.models.base import Streams

Hear = Callable[[Tensor], Streams]


class Adversarial(Term):
    """A term of a student's streams on perturbed speech; for a teacher's it is given those on the speech as it is.

    Args:
        stream: what is disturbed: ``logits`` of a decoder, ``ctc_logits`` of frames.
        snr_db: level of what the student hears over that of the perturbation, over the samples of speech alone; so it
            means the same for loud and for quiet clips.

    Raises:
        ConfigError: another stream.
    """

    def __init__(self, stream: str, snr_db: float):
        super().__init__()
        check_word("stream", stream, ("logits", "ctc_logits"))
        self.stream, self.snr_db = stream, snr_db
        self.needs = (stream,)

    def perturbed(self, student: nn.Module, batch: Batch) -> Tensor:
        """Return what the student hears, and the perturbation of each clip's speech; ``(B, T)``, without gradient."""
        x_BT = batch.noisy_BT.detach()
        with without_dropout(student), torch.autocast(x_BT.device.type, enabled=False), torch.enable_grad():
            found_BT = self.search(partial(batch.through, student), batch)
        return x_BT + found_BT.detach()

    def search(self, hear: Hear, batch: Batch) -> Tensor:
        """Return the perturbation ``(B, T)``, zero beyond each clip's speech.

        Args:
            hear: the student's streams for clips.
        """
        raise NotImplementedError


class FGSM(Adversarial):
    """The loss of the labels on adversarial speech, found by the fast gradient sign method.

    Goodfellow et al. 2015, section 4: ``J(x + eps sign(dJ(x, y) / dx), y)`` with J the cross-entropy or CTC of the
    labels y. ``eps`` is the largest change of a sample and, but where the gradient is zero, that of every sample: so it
    is the root mean square of the perturbation.

    Args:
        stream, snr_db: as of `Adversarial`.
    """

    of_labels = True

    def __init__(self, stream: str = "logits", snr_db: float = 30.0):
        super().__init__(stream, snr_db)
        self.labels = CrossEntropy() if stream == "logits" else CTC()

    def bind(self, student: nn.Module, teacher: object) -> None:
        self.labels.bind(student, teacher)

    def search(self, hear: Hear, batch: Batch) -> Tensor:
        x_BT = batch.noisy_BT.detach().requires_grad_()
        # The sum over utterances, each of which depends on its own samples alone.
        [gradient_BT] = torch.autograd.grad(self.labels(hear(x_BT), {}, batch), x_BT)
        n_samples_B = batch.speech_lengths_B.clamp(min=1).to(x_BT.dtype)
        eps_B = norm(of_speech(x_BT.detach(), batch)) / n_samples_B.sqrt() * ratio(self.snr_db)
        return eps_B[:, None] * of_speech(gradient_BT, batch).sign()

    def forward(self, student: Streams, teacher: Streams, batch: Batch) -> Tensor:
        return self.labels(student, {}, batch)


class VAT(Adversarial):
    """Virtual adversarial training: how far the output moves where it moves most, whatever the labels say.

    Miyato et al. 2018, equations 5 to 12: KL(p(x) || p(x + r)) with ``r = eps d`` and d the direction in which the
    divergence grows most, the dominant eigenvector of its second derivative. It is found by power iteration from a
    random direction, the product with the second derivative being the gradient at ``x + xi d``, over ``xi``. p(x) has
    no gradient. Summed over tokens or frames and divided by label tokens, as soft labels are. A decoder is asked
    about the tokens of the labels, so it needs text, as everywhere; frames need none.

    Args:
        stream: as of `Adversarial`.
        snr_db: gives eps, the norm of r: exactly this level below the speech.
        xi_snr_db: gives xi, the norm of the step of the power iteration, in the same way.
        iterations: of the power method; 1 in the paper.
    """

    def __init__(self, stream: str = "logits", snr_db: float = 30.0, xi_snr_db: float = 60.0, iterations: int = 1):
        super().__init__(stream, snr_db)
        self.xi_snr_db, self.iterations = xi_snr_db, iterations

    def search(self, hear: Hear, batch: Batch) -> Tensor:
        x_BT = batch.noisy_BT.detach()
        with torch.no_grad():
            itself = hear(x_BT)
        norm_B1 = norm(of_speech(x_BT, batch))[:, None]
        direction_BT = unit(random_directions(batch.draws, batch.speech_lengths_B, x_BT))
        for _ in range(self.iterations):
            step_BT = (norm_B1 * ratio(self.xi_snr_db) * direction_BT).requires_grad_()
            [gradient_BT] = torch.autograd.grad(self(hear(x_BT + step_BT), itself, batch), step_BT)
            direction_BT = unit(of_speech(gradient_BT, batch), otherwise_BT=direction_BT)
        return norm_B1 * ratio(self.snr_db) * direction_BT

    def forward(self, student: Streams, teacher: Streams, batch: Batch) -> Tensor:
        ours, itself = student[self.stream], teacher[self.stream]
        valid = ours.mask()
        log_p_RV, log_q_RV = (
            at_least_float32(stream.values_BND[valid]).log_softmax(-1) for stream in (itself, ours)
        )  # fmt: skip
        return kl(log_p_RV.detach(), log_q_RV).sum()


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode for a while, all but its recurrent layers: cuDNN gives those no gradient there."""
    training = {module: module.training for module in model.modules()}
    dropout = {module: module.dropout for module in training if isinstance(module, nn.RNNBase)}
    model.eval()
    for recurrent in dropout:
        recurrent.train()
        recurrent.dropout = 0.0
    try:
        yield
    finally:
        for module, was in training.items():
            module.training = was
        for recurrent, share in dropout.items():
            recurrent.dropout = share


def ratio(snr_db: float) -> float:
    """Return the level of a perturbation over that of the speech."""
    return 10 ** (-snr_db / 20)


def of_speech(x_BT: Tensor, batch: Batch) -> Tensor:
    """Return clips with zeros beyond their speech."""
    return torch.where(valid_mask(batch.speech_lengths_B, x_BT.shape[1]), x_BT, 0.0)


def norm(x_BT: Tensor) -> Tensor:
    """Return the Euclidean norm of each clip, ``(B,)``."""
    return torch.linalg.vector_norm(x_BT, dim=1)


def unit(x_BT: Tensor, otherwise_BT: Tensor | None = None) -> Tensor:
    """Return clips with norm 1; of one that is zero, another, or zero."""
    norm_B1 = norm(x_BT)[:, None]
    unit_BT = x_BT / norm_B1.clamp(min=torch.finfo(x_BT.dtype).tiny)
    return unit_BT if otherwise_BT is None else torch.where(norm_B1 > 0, unit_BT, otherwise_BT)


def random_directions(draws: Draws, lengths_B: Tensor, like_BT: Tensor) -> Tensor:
    """Return Gaussian noise as long as each clip's speech, of the utterance's own draws; zero beyond; ``(B, T)``."""
    noise_BT = torch.zeros_like(like_BT)
    seeds_B = draws.below("adversarial", 2**53)
    for row_T, seed, n in zip(noise_BT, seeds_B.tolist(), lengths_B.tolist(), strict=True):
        row_T[:n] = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    return noise_BT
