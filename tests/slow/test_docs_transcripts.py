"""Every command of docs/transcripts.md runs, in its smallest form."""

import json
import re
import shlex
from pathlib import Path

import corpora
import pytest
from pretrained import whisper_folder

from rkd import stages
from rkd.config import compose
from rkd.draws import unit_hash
from rkd.transcripts import FILTERS

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "transcripts.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^rkd .+$", PAGE, re.MULTILINE)
TRAINER = ["steps=2", "batch_seconds=60", "validate_every=2", "validate_utterances=4"]
SMALL = ["noise=white", *(f"trainer.{x}" for x in TRAINER), "trainer.accumulate=1", "evaluate=trained",
         "evaluate.snr=[5]", "evaluate.quality_utterances=0", "log_every=1", "device=cpu"]  # fmt: skip
DIGITS = ["data.n_train=24", "data.n_validation=6", "data.n_test=6", "data.length=[1,3]", "trainer.clean=0"]
TRAINED = ["noise@teacher.noise=white", "teacher=tiny", *(f"teacher.trainer.{x}" for x in TRAINER)]
# What small teachers write breaks any limit that is worth having.
LOOSE = [f"transcripts.{key}={1e6 if key.startswith('max') else 'null'}" for key in FILTERS]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    whisper_folder(folder / "models/whisper-tiny", "v2")
    for seed, name in enumerate(("whisper-small", "whisper-large-v2")):
        whisper_folder(folder / "models" / name, "v2", seed=seed + 1, decoder_layers=3)
    corpora.librispeech(folder / "data/LibriSpeech", ["train-clean-100", "dev-clean", "test-clean"])
    corpora.librispeech(folder / "data/unlabelled", ["train-a", "dev-a", "test-a"], text=False)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_runs(command, work):
    command = command.replace("/models/", f"{work}/models/").replace("/data/", f"{work}/data/")
    _, stage, *overrides = shlex.split(command, comments=True)
    overrides += SMALL + LOOSE + [f"root={work}/runs"]
    overrides += ([] if "data.path" in command else DIGITS) + ([] if "teacher.source" in command else TRAINED)
    folder = stages.run(stage, compose(stage, overrides), overrides)
    assert '"state": "done"' in (folder / "status.json").read_text()
    if stage == "evaluate":
        told = json.loads((folder / "results.json").read_text())
        assert told["reference"] == ("teacher transcripts" if "unlabelled" in command else "text")
        return
    losses = [json.loads(line).get("loss") for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [told for told in losses if told]
    assert len(losses) == 2
    if share := compose(stage, overrides).loss.on_policy:
        own = [unit_hash(f"on policy/0/{number}") < share for number in range(2)]
        assert [told["labels"] == 0 for told in losses] == own and all(told["soft"] > 0 for told in losses)


def test_transcripts_are_shared(work):
    """Those of digits by one teacher greedily and by beams, and by two others; those of two other corpora."""
    folders = list(work.glob("runs/transcribe/*"))
    assert len(folders) <= 6
    for folder in folders:
        told = [json.loads(line) for line in (folder / "transcripts-0.jsonl").read_text().splitlines()]
        assert told and all(node.keys() == {"id", "text", "confidence", "timed"} for node in told)
        assert all(node["confidence"] <= 0 for node in told)


def test_every_key_is_on_the_page():
    assert all(f"`{key}`" in PAGE for key in FILTERS)
    assert all(f"`transcripts.{key}`" in PAGE for key in ("timestamps", "text_before"))
    assert all(f"loss.{key}" in PAGE for key in ("on_policy", "on_policy_temperature", "labels"))
