"""Pretrained teachers and students through the command line, on folders of the real form with random weights."""

import contextlib
import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from pretrained import ctc_folder, whisper_folder

from rkd.cli import main
from rkd.transcripts import load

pytestmark = pytest.mark.slow

SMALL = [
    "data.n_train=24", "data.n_validation=6", "data.n_test=6", "data.length=[1,2]", "trainer.steps=3",
    "trainer.validate_every=3", "trainer.validate_utterances=4", "noise=white", "evaluate=trained", "evaluate.snr=[5]",
    "evaluate.quality_utterances=0", "log_every=1", "device=cpu",
]  # fmt: skip


def rkd(folder, *arguments, code=0):
    """Run the command line in a folder, in this process; return the path on stdout and what people read."""
    out, said = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        assert main([*arguments, *SMALL]) == code, said.getvalue()
    assert "Traceback" not in said.getvalue(), said.getvalue()
    return (Path(folder, out.getvalue().strip()) if out.getvalue() else None), said.getvalue()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    whisper_folder(root / "tiny", "v2")
    whisper_folder(root / "large", "v3", d_model=48, decoder_layers=3)
    ctc_folder(root / "base", "wav2vec2-base")
    ctc_folder(root / "hubert", "hubert-large")
    return root


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def recognise(folder):
    """Transcribe noise with the plain pipeline."""
    from transformers import pipeline

    x_T = (0.1 * np.random.default_rng(0).standard_normal(16000)).astype(np.float32)
    model = pipeline("automatic-speech-recognition", model=str(folder / "model"), device="cpu")
    more = {"generate_kwargs": {"max_new_tokens": 8}} if model.type != "ctc" else {}
    return model({"raw": x_T, "sampling_rate": 16000}, **more)["text"]


def test_a_pretrained_teacher_is_used_as_it_is(work, models):
    before = contents(models / "large")
    arguments = ["evaluate", "student=whisper-tiny", f"student.source={models / 'tiny'}", "teacher=whisper-large-v3",
                 f"teacher.source={models / 'large'}"]  # fmt: skip
    run, _ = rkd(work, *arguments)
    systems = json.loads((run / "results.json").read_text())["systems"]
    roles = ["teacher", "student", "baseline"]
    assert [(s["role"], s["family"]) for s in systems] == [(role, "hubwhisper") for role in roles]
    assert systems[2]["name"] == f"{systems[1]['name']}, padded to 30 s"
    assert systems[0]["name"] == "teacher whisper-large-v3"
    assert contents(models / "large") == before and not list(work.glob("runs/train-teacher/*"))
    student = next(work.glob("runs/distill/whisper-tiny-*"))
    losses = [
        json.loads(line)["loss"] for line in (student / "metrics.jsonl").read_text().splitlines() if "loss" in line
    ]
    assert all(set(loss) == {"labels", "soft"} and loss["soft"] > 0 for loss in losses) and len(losses) == 3
    assert isinstance(recognise(student), str)
    again, said = rkd(work, *arguments)
    assert again == run and "nothing to do" in said


def test_a_student_of_the_teachers_layers(work, models):
    teacher = ["student=whisper-large-v3", "student.init=teacher", f"teacher.source={models / 'large'}"]
    run, _ = rkd(work, "distill", *teacher, "student.decoder_layers=1")
    config = json.loads((run / "model/config.json").read_text())
    assert (config["encoder_layers"], config["decoder_layers"], config["d_model"]) == (2, 1, 48)
    assert isinstance(recognise(run), str)
    _, said = rkd(work, "distill", *teacher, "student.decoder_layers=7", code=2)
    assert "7 layers and the teacher 3" in said


def test_a_shape_of_our_own_with_a_pretrained_teacher(work, models):
    run, _ = rkd(work, "distill", "student=tiny", "teacher=whisper-tiny", f"teacher.source={models / 'tiny'}")
    n_tokens = json.loads((models / "tiny/config.json").read_text())["vocab_size"]
    assert json.loads((run / "model/config.json").read_text())["vocab_size"] == n_tokens
    assert isinstance(recognise(run), str)


def test_transcripts_cross_vocabularies(work, models):
    teacher = ["teacher=whisper-tiny", f"teacher.source={models / 'tiny'}"]
    run, _ = rkd(work, "distill", "student=ctc_tiny", *teacher, "loss=transcripts", "data.tokenizer=char")
    [told] = map(load, work.glob("runs/transcribe/*"))
    assert all(-math.inf < transcript.confidence <= 0 for transcript in told.values())
    texts = {name: transcript.text for name, transcript in told.items()}
    assert len(texts) == 36 and len(set(texts.values())) > 1
    from rkd.data.store import Store
    from rkd.tokenizer import load_tokenizer, lost_words

    [speech] = work.glob("runs/prepare/digits-*")
    train = [texts[name] for name in Store.open(speech, "train").ids]
    assert lost_words(load_tokenizer(run / "model"), train)[0] == []


def test_soft_labels_between_unlike_vocabularies_are_refused(work, models, tmp_path):
    english = whisper_folder(tmp_path / "english", "en")
    _, said = rkd(work, "distill", "student=whisper-tiny", f"student.source={english}", "teacher=whisper-tiny",
                  f"teacher.source={models / 'tiny'}", code=2)  # fmt: skip
    assert "loss=transcripts" in said


def test_pretrained_ctc_models(work, models):
    run, _ = rkd(work, "evaluate", "student=wav2vec2-base-960h", f"student.source={models / 'base'}",
                 f"teacher.source={models / 'hubert'}")  # fmt: skip
    systems = json.loads((run / "results.json").read_text())["systems"]
    assert [s["name"] for s in systems if s["role"] == "teacher"] == ["teacher hubert-large-ls960"]
    assert isinstance(recognise(next(work.glob("runs/distill/wav2vec2-base-960h-*"))), str)


def test_a_fresh_vocabulary_and_going_on_from_a_run(work, models):
    student = ["distill", "student=wav2vec2-base-960h", "loss=supervised"]
    first, _ = rkd(work, *student, f"student.source={models / 'base'}", "student.vocabulary=corpus")
    vocabulary = json.loads((first / "model/vocab.json").read_text())
    assert set(vocabulary) == {"<pad>", "<s>", "</s>", "<unk>", "|", *"zeroonetwothreefourfivesixseveneightnine"}
    second, _ = rkd(work, *student, f"student.init_from={first}", "data.seed=1")
    assert second != first and json.loads((second / "model/vocab.json").read_text()) == vocabulary
    assert contents(second / "model")["model.safetensors"] != contents(first / "model")["model.safetensors"]
    _, said = rkd(work, "distill", "student=ctc_tiny", "loss=supervised", f"student.init_from={first}", code=2)
    assert "holds a HubCTC, not a ctc model" in said


def test_a_shape_of_our_own_goes_on_from_a_run(work):
    first, _ = rkd(work, "distill", "student=ctc_tiny", "loss=supervised")
    second, _ = rkd(work, "distill", "student=ctc_tiny", "loss=supervised", f"student.init_from={first}", "data.seed=1")
    assert contents(second / "model")["tokenizer.json"] == contents(first / "model")["tokenizer.json"]
    _, said = rkd(work, "distill", "student=ctc_base", "loss=supervised", f"student.init_from={first}", code=2)
    assert "has d_model=64, not 96" in said


def test_a_teacher_is_fine_tuned_and_then_used(work, models):
    run, _ = rkd(work, "train-teacher", "teacher=whisper-tiny", f"teacher.source={models / 'tiny'}",
                 "teacher.finetune=true", "teacher.vocabulary=corpus", "teacher.trainer.steps=2",
                 "teacher.trainer.validate_utterances=4", "noise@teacher.noise=white")  # fmt: skip
    assert json.loads((run / "model/config.json").read_text())["vocab_size"] < 40
    distilled, _ = rkd(work, "distill", "student=tiny", "teacher=whisper-tiny", f"teacher.path={run}")
    assert json.loads((distilled / "model/config.json").read_text())["vocab_size"] < 40


@pytest.mark.parametrize("lost", ["model.safetensors", "vocab.json", "config.json"])
def test_half_a_model_is_a_line(work, models, tmp_path, lost):
    copy = shutil.copytree(models / "tiny", tmp_path / "half")
    (copy / lost).unlink()
    _, said = rkd(work, "distill", "teacher=whisper-tiny", f"teacher.source={copy}", code=4)
    assert "is not a whole model" in said.splitlines()[-1]
