"""Loss terms. Each compares a student's streams with labels, with a teacher's streams, or with its own of clean speech.

base         what a term is, and how two models' streams and vocabularies are brought together
rows         sums over rows of logits, without all of them at any time
labels       cross-entropy and CTC
soft         divergences of two distributions over tokens
layers       what the terms on layers share
hidden       distances between hidden layers
relations    similarities within a layer
attention    attention maps
denoising    the waveform that a denoiser gives
adversarial  the student on speech that is perturbed against it
balance      weights that follow the norms of the terms' gradients
schedules    values that change over the training

A term returns a sum over valid frames or tokens, and ``count`` says what to divide it by; the trainer sums both over
accumulated batches and ranks first, since a mean of means is wrong where lengths are uneven. To add a term, write the
class and name it in a YAML under ``conf/loss``: nothing else changes.
"""

from rkd.losses.adversarial import FGSM, VAT, Adversarial
from rkd.losses.attention import AttentionMaps
from rkd.losses.balance import Balance, gradient_norms
from rkd.losses.base import ITSELF, Term, align, check_given
from rkd.losses.denoising import SISDR, MagnitudeL1, MultiResolutionSTFT, WaveformMSE
from rkd.losses.hidden import Hidden
from rkd.losses.labels import CTC, CrossEntropy
from rkd.losses.relations import Relations
from rkd.losses.rows import sums_over_rows
from rkd.losses.schedules import Schedule
from rkd.losses.soft import SoftFrames, SoftTokens

__all__ = [
    "CTC",
    "FGSM",
    "ITSELF",
    "SISDR",
    "VAT",
    "Adversarial",
    "AttentionMaps",
    "Balance",
    "CrossEntropy",
    "Hidden",
    "MagnitudeL1",
    "MultiResolutionSTFT",
    "Relations",
    "Schedule",
    "SoftFrames",
    "SoftTokens",
    "Term",
    "WaveformMSE",
    "align",
    "check_given",
    "gradient_norms",
    "sums_over_rows",
]
