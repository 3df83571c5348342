"""`rkd check`: what stands in the way of a run is found before it starts, and nothing is written."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from rkd.commands import check
from rkd.config import devices


@pytest.fixture(autouse=True)
def work_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(devices, "cuda_available", lambda: False)


def findings(said):
    return [
        (subject, finding.strip()) for line in said.out.splitlines() for subject, _, finding in [line.partition("  ")]
    ]


def test_all_is_well_and_nothing_is_written(rkd, overrides, recordings, tmp_path):
    before = sorted(recordings.rglob("*"))
    said = rkd("check", "evaluate", *overrides)
    assert said.code == 0 and said.err == ""
    found = findings(said)
    assert [subject for subject, _ in found].count("to build") == 6
    assert ("device", "student trained in fp32") in found
    assert any(finding.startswith("noise recorded: 10 recordings") for _, finding in found)
    assert any(finding.startswith("data: 30 recordings") for _, finding in found)
    assert not list(tmp_path.iterdir()) and sorted(recordings.rglob("*")) == before


def test_what_exists_is_not_built(rkd, overrides):
    assert rkd("prepare", *overrides).code == 0
    found = findings(rkd("check", "distill", *overrides))
    assert [subject for subject, _ in found].count("exists") == 3


def test_every_problem_is_said_and_the_first_one_counts(rkd, recordings):
    said = rkd(
        "check",
        "evaluate",
        "device=cuda",
        "data=folder",
        "data.path=/nowhere",
        "noise=recorded",
        "noise.folder=/nothing",
        "teacher.path=/nobody",
        f"evaluate.systems=[{recordings}]",
    )
    lines = said.err.splitlines()
    assert said.code == 5 and len(lines) == 5
    for line, part in zip(lines, ("device=cuda", "/nowhere", "noise.folder", "/nobody", str(recordings)), strict=True):
        assert line.startswith("rkd: ") and part in line
    assert ("to build", "not known before the problems are solved") in findings(said)


def test_recordings_that_cannot_be_read(rkd, overrides, recordings, tmp_path):
    copy = tmp_path / "noise"
    shutil.copytree(recordings / "noise", copy)
    (copy / "rain" / "0.wav").write_text("no audio")
    said = rkd("check", "distill", *overrides, f"noise.folder={copy}")
    assert said.code == 0 and "warning: noise recorded: 1 of them cannot be used" in said.out
    for file in copy.rglob("*.wav"):
        file.write_text("no audio")
    said = rkd("check", "distill", *overrides, f"noise.folder={copy}")
    assert said.code == 3 and "noise recorded: 10 of 10 recordings cannot be used" in said.err
    shutil.copy(recordings / "noise" / "rain" / "1.wav", copy / "rain")
    said = rkd("check", "distill", *overrides, f"noise.folder={copy}")
    assert said.code == 3 and "noise recorded: 9 of 10 recordings cannot be used; the first: " in said.err


def test_a_disk_that_is_too_small(rkd, overrides, monkeypatch):
    monkeypatch.setattr(check.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    said = rkd("check", "distill", *overrides)
    assert said.code == 5 and "1 kB free" in said.err and "root=/another/folder" in said.err


def test_what_will_be_written_is_about_what_is_written(rkd, overrides, tmp_path, monkeypatch):
    """The estimate of the stores, made from the recordings that were looked at."""
    sizes = []
    monkeypatch.setattr(check, "_size", lambda n_bytes: sizes.append(n_bytes) or "")
    rkd("check", "prepare", *overrides)
    rkd("prepare", *overrides)
    written = sum(path.stat().st_size for path in (tmp_path / "runs").rglob("*.arrow"))
    assert sizes[0] == pytest.approx(written, rel=0.25)


def test_utterances_at_other_speeds_and_pitches_are_counted(rkd, overrides):
    said = rkd("check", "prepare", *overrides, "data.speed=[0.9,1.1]", "data.pitch_shift=[-2]")
    what = "data: each training utterance comes 4 times: as it is, speed 0.9, speed 1.1, pitch_shift -2"
    assert said.code == 0 and ("files", what) in findings(said)
    assert rkd("prepare", *overrides, "data.speed=[0.9]").err.count("at another speed, tempo or pitch (sp0.9: ") == 1


def test_a_root_that_cannot_be_written(rkd, overrides, locked):
    said = rkd("check", "distill", *overrides, f"root={locked}")
    assert said.code == 5 and f"{locked} cannot be written" in said.err


def test_packages_that_are_not_there(rkd, monkeypatch):
    find = check.importlib.util.find_spec
    monkeypatch.setattr(
        check.importlib.util,
        "find_spec",
        lambda name, *more: None if name in ("pesq", "espeakng_loader") else find(name, *more),
    )
    said = rkd("check", "evaluate", "device=cpu")
    assert said.code == 5 and "pip install espeakng-loader" in said.err and "without pesq" in said.out


def test_a_precision_that_the_device_lacks(rkd):
    said = rkd("check", "distill", "device=cpu", "trainer.precision=fp16")
    assert said.code == 2 and "precision=fp16 needs a CUDA device" in said.err


@pytest.fixture
def teacher(tmp_path, tokenizer):
    """A teacher's folder, without weights, whose words are one, two, three and four."""
    folder = tmp_path / "teacher" / "model"
    folder.mkdir(parents=True)
    tokenizer.save_pretrained(folder)
    (folder / "rkd.json").write_text('{"family": "whisper", "window_seconds": 4, "shape": {}}')
    return folder.parent


def test_words_that_the_teacher_cannot_spell(rkd, overrides, teacher):
    said = rkd("check", "distill", *overrides, f"teacher.path={teacher}")
    assert said.code == 0 and ("vocabulary", "the teacher's tokens spell the corpus's 2 words") in findings(said)
    assert rkd("prepare", *overrides).code == 0
    said = rkd("check", "distill", *overrides, f"teacher.path={teacher}")
    assert ("vocabulary", "the teacher's tokens spell the corpus's 2 words") in findings(said)
    said = rkd("check", "distill", "data.words=[one,sieben]", f"teacher.path={teacher}")
    assert said.code == 3 and "cannot spell 1 of 2 words of the corpus, such as sieben" in said.err


def test_a_corpus_without_text_needs_a_teacher(rkd, overrides, recordings, teacher, tmp_path):
    shutil.copytree(recordings / "speech", tmp_path / "speech", ignore=shutil.ignore_patterns("*.txt"))
    overrides = [*overrides, f"data.path={tmp_path}/speech"]
    said = rkd("distill", *overrides)
    assert said.code == 3 and "the corpus has no text" in said.err
    assert [path.name[:6] for path in (tmp_path / "runs" / "prepare").iterdir()] == ["folder"], "no more was built"
    said = rkd("check", "distill", *overrides)
    assert said.code == 3 and "the corpus has no text" in said.err
    assert rkd("check", "distill", *overrides, f"teacher.path={teacher}").code == 0


def test_weights_are_about_those_of_the_model(make_whisper, make_ctc):
    from rkd.models.base import count_parameters

    shape = {"d_model": 128, "ffn": 512, "heads": 4, "encoder_layers": 3, "decoder_layers": 2, "n_mels": 40}
    assert check._count_weights(shape) == pytest.approx(count_parameters(make_whisper(**shape)), rel=0.15)
    del shape["decoder_layers"]
    assert check._count_weights(shape) == pytest.approx(count_parameters(make_ctc(**shape)), rel=0.15)
    assert check._count_weights({"channels": 24}) is None


def test_the_users_folder_is_checked(rkd, tmp_path, monkeypatch):
    (tmp_path / "conf" / "noise").mkdir(parents=True)
    (tmp_path / "conf" / "noise" / "city.yaml").write_text("defaults: [recorded, _self_]\nfolder: /no/such/city\n")
    monkeypatch.setenv("RKD_CONF", str(tmp_path / "conf"))
    said = rkd("check", "distill", "device=cpu", "noise=city")
    assert said.code == 3 and "/no/such/city: there is no such folder; set noise.folder" in said.err


@pytest.mark.parametrize(
    "arguments, part",
    [
        ([], "required: STAGE"),
        (["distil"], "nearest: distill"),
        (["distill", "trainer.lr=1"], "nearest: trainer.learning_rate"),
        (["distill", "--al"], "unknown option --al"),
        (["distill", "student=tiny,base"], "several runs"),
    ],
)
def test_a_wrong_call_says_what_would_be_right(rkd, arguments, part):
    said = rkd("check", *arguments)
    assert said.code == 2 and said.out == "" and part in said.err


def test_an_empty_folder_is_enough(rkd, tmp_path):
    said = rkd("check", "prepare")
    assert said.code == 0 and not list(tmp_path.iterdir())


def test_a_damaged_run_is_a_problem_and_a_damaged_store_is_made_again(rkd, overrides):
    store = rkd("prepare", *overrides).out.strip()
    Path(store, "summary.json").write_text("{")
    said = rkd("check", "distill", *overrides)
    assert said.code == 0 and f"{store} (damaged: what is missing will be made again)" in said.out
    assert rkd("prepare", *overrides).code == 0
    student = Path(store).parents[1] / "distill" / Path(find_student(said)).name
    student.mkdir(parents=True)
    (student / "status.json").write_text('{"state": "done", "files": {"model/rkd.json": 9}}')
    said = rkd("check", "distill", *overrides)
    assert said.code == 4 and f"{student} is damaged: model/rkd.json is missing" in said.err


def find_student(said):
    return next(f for _, finding in findings(said) if "/distill/" in (f := finding.split(" ")[0].rstrip(",")))


def test_what_is_required_is_named_alone(rkd):
    said = rkd("check")
    assert said.code == 2 and said.err.startswith("rkd: check: the following arguments are required: STAGE")
    assert "OVERRIDE" not in said.err


@pytest.mark.parametrize(
    "overrides, key, why",
    [
        (["targets.live=true", "targets.k=64"], "k", "targets.live=true"),
        (["loss.teacher_input=noisy", "targets.sample=9"], "sample", "loss.teacher_input=noisy"),
        (["targets.max_bytes=1"], "max_bytes", "no loss term compares what it is about"),
        (["loss=supervised", "targets.k=2"], "k", "no loss term asks a teacher"),
    ],
)
def test_a_key_of_stored_targets_that_changes_nothing_is_said(rkd, overrides, key, why):
    assert ("targets", f"warning: targets.{key} changes nothing: {why}") in findings(
        rkd("check", "distill", *overrides)
    )


def test_whether_the_teacher_will_be_loaded_is_said(rkd):
    stored, live = (findings(rkd("check", "distill", *o)) for o in (["targets.k=64"], ["loss.on_policy=0.5"]))
    assert ("targets", "outputs are stored, and read by what follows without the teacher") in stored
    assert ("targets", "the teacher hears every batch: loss.on_policy=0.5") in live
    assert not any("changes nothing" in finding for _, finding in stored + live)
