"""One process and two train the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
TESTS = Path(__file__).resolve().parents[1]

TRAIN = """
import json, sys
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
from rkd.training.trainer import Objective, Settings, train

speech, folder, more = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
accelerator = ranks.accelerator("cpu", "fp32")
if accelerator.is_main_process:
    folder.mkdir()
accelerator.wait_for_everyone()
store, tokenizer = Store.open(speech, "train"), build_tokenizer(WORDS)
white = Coloured(0)
white.load(Resources("train", None, None, torch.device("cpu")))
noise = Corruption({"white": white}, {"white": 1.0}, {"noise": 1.0}, [5.0])
torch.manual_seed(0)
student = Whisper(tokenizer, 2, 32, 64, 2, 1, 1, 16, 320, 0.0)
itself = SoftTokens(temperature={"from": 4, "to": 1})
itself.bind(student, student)
itself.against = ITSELF
terms = {"labels": CrossEntropy(), "itself": itself}
# At the level of the default the divergence is hardly above what rounding makes of it.
terms |= {"ctc": {"ctc": CTC()}, "labels": {}, "adversarial": {"fgsm": FGSM(), "vat": VAT("logits", 10.0, 30.0)}}[more]
watcher = Watcher()
train(
    Objective(student, terms, dict.fromkeys(terms, 1.0) | {"itself": Schedule(0.5, 2.0)}, 2 if more == "ctc" else None),
    Batches(store, [encode(tokenizer, t) for t in store.texts], 8.0, 0, 0.3, 2),
    lambda batch, phase: assemble.corrupt(batch, noise), lambda batch: [], lambda model: 1.0,
    Settings(
        steps=6, batch_seconds=8.0, accumulate=2, learning_rate=2e-3, betas=(0.9, 0.98), weight_decay=0.01, warmup=0.2,
        schedule="cosine", clip_norm=1.0, clean=0.0, silence=0.3, precision="fp32", validate_every=3,
        validate_utterances=4, patience=None, train="all", freeze=[], unfreeze_every=None, layer_decay=0.9, average=0.9,
        recompute=False, compile=False, adapters=None, phases=[{"steps": 2, "freeze": ["decoder"]}, {}],
    ), folder, accelerator,
    watcher, 1, 0, 0,
)
if accelerator.is_main_process:
    total = sum(float(p.detach().double().abs().sum()) for p in student.parameters())
    (folder / "told.json").write_text(json.dumps([watcher.losses, total, accelerator.num_processes]))
"""


@pytest.mark.parametrize(
    "terms, rounding",
    [
        ("ctc", 1),
        ("labels", 1),  # without the CTC term its head has no gradient
        ("adversarial", 10),  # FGSM takes the sign of gradients, of which some are near zero
    ],
)
def test_two_ranks_train_as_one(speech, tmp_path, terms, rounding):
    (tmp_path / "train.py").write_text(TRAIN)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), "OMP_NUM_THREADS": "1"}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    told = []
    for ranks, launcher in ((1, []), (2, launch)):
        folder = tmp_path / str(ranks)
        command = [sys.executable, *launcher, str(tmp_path / "train.py"), str(speech), str(folder), terms]
        subprocess.run(command, env=environment, check=True, timeout=120, capture_output=True)
        told.append(json.loads((folder / "told.json").read_text()))
    (losses, total, _), (losses_2, total_2, n) = told
    assert n == 2 and len(losses) == 6
    for one, two in zip(losses, losses_2, strict=True):
        assert two == pytest.approx(one, rel=rounding * 1e-5, abs=1e-6)
    assert total_2 == pytest.approx(total, rel=rounding * 1e-6)
