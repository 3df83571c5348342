"""One process and two train the same, whether or not each holds all of the weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
TESTS = Path(__file__).resolve().parents[1]

TRAIN = """
import json, os, signal, sys
from pathlib import Path

import torch

from conftest import WORDS, Watcher
from rkd import assemble, ranks
from rkd.data.batches import Batches
from rkd.data.store import Store
from rkd.losses import CTC, FGSM, ITSELF, VAT, CrossEntropy, Schedule, SoftTokens
from rkd.models.whisper import Whisper
from rkd.noise import Coloured, Corruption, Resources
from rkd.tokenizer import build_tokenizer, encode
from rkd.training.layers import recompute_layers
from rkd.training.objective import Objective
from rkd.training.settings import Settings
from rkd.training.trainer import train

speech, folder, more, shard, stop = Path(sys.argv[1]), Path(sys.argv[2]), *map(json.loads, sys.argv[3:])
accelerator = ranks.accelerator("cpu", "fp32")
if accelerator.is_main_process:
    folder.mkdir(exist_ok=True)
accelerator.wait_for_everyone()
store, tokenizer = Store.open(speech, "train"), build_tokenizer(WORDS)
white = Coloured(0)
white.load(Resources("train", None, None, torch.device("cpu")))
noise = Corruption({"white": white}, {"white": 1.0}, {"noise": 1.0}, [5.0])
torch.manual_seed(0)
student = Whisper(tokenizer, 2, 32, 64, 2, 1, 1, 16, 320, 0.0)
if shard:  # which goes with it, and changes nothing
    recompute_layers(student)
itself = SoftTokens(temperature={"from": 4, "to": 1})
itself.bind(student, student)
itself.against = ITSELF
terms = {"labels": CrossEntropy(), "itself": itself}
# At the level of the default the divergence is hardly above what rounding makes of it.
terms |= {"ctc": {"ctc": CTC()}, "labels": {}, "adversarial": {"fgsm": FGSM(), "vat": VAT("logits", 10.0, 30.0)}}[more]
# Sharding excludes both, so what it is compared with has neither.
balance, average = (2 if more == "ctc" else None, 0.9) if shard is None else (None, None)
watcher = Watcher({stop: lambda: os.kill(os.getpid(), signal.SIGTERM)})

def size(model):
    return sum(float(p.detach().double().abs().sum()) for p in model.parameters())

def validate(model):
    if accelerator.is_main_process:  # which needs no other rank for it
        model.transcribe(torch.zeros(1, 16000), torch.tensor([16000]), 1)
    return size(model)

train(
    Objective(student, terms, dict.fromkeys(terms, 1.0) | {"itself": Schedule(0.5, 2.0)}, balance),
    Batches(store, [encode(tokenizer, t) for t in store.texts], 8.0, 0, 0.3, 2),
    lambda batch, phase: assemble.corrupt(batch, noise), lambda batch: [], validate,
    Settings(
        steps=6, batch_seconds=8.0, accumulate=2, learning_rate=2e-3, betas=(0.9, 0.98), weight_decay=0.01, warmup=0.2,
        schedule="cosine", clip_norm=1.0, clean=0.0, silence=0.3, precision="fp32", validate_every=3,
        validate_utterances=4, patience=None, train="all", freeze=[], unfreeze_every=None, layer_decay=0.9,
        recompute=False, compile=False, shard=bool(shard), average=average, adapters=None,
        phases=[{"steps": 2, "freeze": ["decoder"]}, {}],
    ), folder, accelerator,
    watcher, 1, 0, 0,
)
if accelerator.is_main_process:
    told = [watcher.losses, watcher.wers, size(student), accelerator.num_processes]
    (folder / "told.json").write_text(json.dumps(told))
"""
LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture
def trained(speech, tmp_path):
    """Train with one process or two, and return what was told."""
    (tmp_path / "train.py").write_text(TRAIN)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), "OMP_NUM_THREADS": "1"}

    def train(n, folder, terms, shard=None, stop=None):
        command = [sys.executable, *(LAUNCH if n == 2 else []), str(tmp_path / "train.py")]
        command += [str(speech), str(tmp_path / folder), *map(json.dumps, (terms, shard, stop))]
        done = subprocess.run(command, env=environment, timeout=120, capture_output=True, text=True)
        if stop:
            assert "stopped at step" in done.stderr, done.stderr
            return None
        assert done.returncode == 0, done.stderr
        *told, processes = json.loads((tmp_path / folder / "told.json").read_text())
        assert processes == n
        return told

    return train


def check_same(one, other, rounding=1, n_steps=6):
    (losses, wers, size), (losses_2, wers_2, size_2) = one, other
    assert len(losses) == 6 and len(losses_2) == n_steps and wers_2
    for told, told_2 in zip(losses[-len(losses_2) :], losses_2, strict=True):
        assert told_2 == pytest.approx(told, rel=rounding * 1e-5, abs=1e-6)
    for (step, wer), (step_2, wer_2) in zip(wers[-len(wers_2) :], wers_2, strict=True):
        assert step == step_2 and wer_2 == pytest.approx(wer, rel=rounding * 1e-6)
    assert size_2 == pytest.approx(size, rel=rounding * 1e-6)


@pytest.mark.parametrize(
    "terms, rounding",
    [
        ("ctc", 1),
        ("labels", 1),  # without the CTC term its head has no gradient
        ("adversarial", 10),  # FGSM takes the sign of gradients, of which some are near zero
    ],
)
def test_two_ranks_train_as_one(trained, terms, rounding):
    check_same(trained(1, "1", terms), trained(2, "2", terms), rounding)


@pytest.mark.parametrize("terms", ["ctc", "labels"])
def test_two_ranks_train_as_one_when_each_holds_a_half(trained, terms):
    check_same(trained(1, "1", terms, shard=False), trained(2, "2", terms, shard=True))


def test_halves_and_adversarial_terms_exclude_each_other(trained):
    with pytest.raises(AssertionError, match=r"trainer\.shard=true: adversarial loss terms need"):
        trained(2, "2", "adversarial", shard=True)


@pytest.mark.parametrize("first, then, n", [(True, True, 2), (True, False, 1), (False, True, 2), (False, False, 2)])
def test_a_training_of_two_ranks_goes_on_with_or_without_halves(trained, first, then, n):
    whole = trained(2, "whole", "ctc", shard=first)
    trained(2, "stopped", "ctc", shard=first, stop=4)
    check_same(whole, trained(n, "stopped", "ctc", shard=then), n_steps=2)
