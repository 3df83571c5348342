"""Each named experiment runs through the real command, and does what makes it different from the others."""

import json

import pytest
from pretrained import ctc_folder, whisper_folder
from safetensors.torch import load_file

from rkd.cli import main

pytestmark = pytest.mark.slow

SMALL = [
    "data.n_train=24", "data.n_validation=4", "data.n_test=4", "data.length=[1,2]", "trainer.steps=4",
    "noise=white", "device=cpu",
]  # fmt: skip
TEACHER = ["teacher.trainer.steps=2", "noise@teacher.noise=white"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    whisper_folder(root / "whisper-tiny", "v2")
    whisper_folder(root / "whisper-small", "v2", seed=1)
    ctc_folder(root / "wav2vec2-base", "wav2vec2-base")
    return root


@pytest.fixture
def distil(tmp_path, monkeypatch, capsys):
    """Run an experiment; return the student's model folder, its losses by step, and what people read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(experiment, *overrides):
        code = main(["distill", f"experiment=[{experiment},smoke]", *SMALL, "log_every=1", *overrides])
        said = capsys.readouterr()
        assert not code, said.err
        folder = tmp_path / said.out.strip()
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return folder / "model", [line["loss"] for line in lines if "loss" in line], said.err

    return run


def changed(before, after):
    """Return the names of the weights that a training changed; both folders have the same ones."""
    ours, theirs = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    assert ours.keys() == theirs.keys()
    return {name for name in ours if not ours[name].equal(theirs[name])}


def test_lora_changes_what_it_adapts_alone(distil, models):
    source = models / "whisper-tiny"
    model, losses, _ = distil("lora", f"student.source={source}")
    names = changed(source, model)
    assert names and all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in names)
    assert set(losses[0]) == {"labels"}


def test_whisper_kd_trains_its_teacher_in_noise(distil, models):
    model, losses, said = distil(
        "whisper_kd",
        f"student.source={models / 'whisper-tiny'}",
        f"teacher.source={models / 'whisper-small'}",
        *TEACHER,
    )
    assert set(losses[0]) == {"labels", "soft"} and "train-teacher step 2/2" in said
    assert changed(models / "whisper-tiny", model)


def test_ctc_finetune_leaves_the_convolutions_and_makes_a_vocabulary(distil, models):
    source = models / "wav2vec2-base"
    model, _, _ = distil("ctc_finetune", f"student.source={source}")
    ours, theirs = load_file(source / "model.safetensors"), load_file(model / "model.safetensors")
    convolutions = [name for name in ours if "feature_extractor" in name]
    assert convolutions and all(ours[name].equal(theirs[name]) for name in convolutions)
    assert any(not ours[name].equal(theirs[name]) for name in ours if ".layers." in name)
    letters = set(json.loads((model / "vocab.json").read_text()))
    assert {"z", "e", "r", "o"} <= {letter.lower() for letter in letters}
    assert theirs["lm_head.weight"].shape[0] == len(letters) != ours["lm_head.weight"].shape[0]


def test_ctc_kd_follows_the_teachers_frames(distil):
    _, losses, said = distil("ctc_kd", *TEACHER)
    assert "soft" in losses[0] and "train-teacher step 2/2" in said


def test_deepspeech_writes_characters(distil):
    model, losses, said = distil("deepspeech")
    assert json.loads((model / "rkd.json").read_text())["family"] == "deepspeech"
    assert set(losses[0]) == {"labels"} and "train-teacher" not in said
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    assert "one" not in vocabulary and {"o", "n", "e"} <= set(vocabulary)
