"""The build graph: what changes a fingerprint and what does not, and folders that are built once."""

import json
import os
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import soundfile
from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from rkd import stages
from rkd.config import compose
from rkd.errors import CheckpointError, ConfigError, DataError, Interrupted, ResourceError
from rkd.runs import Step, held, recorded, refuse_damaged, write_json
from rkd.stages import plan as plans
from rkd.stages.plan import Existing, Plan
from rkd.status import read_status


def plan(*overrides, stage="evaluate"):
    return Plan(OmegaConf.to_container(compose(stage, ["device=cpu", *overrides])), stage)


def step(kind, *overrides):
    made = plan(*overrides)
    return {
        "speech": lambda: made.speech,
        "teacher": made.teacher,
        "student": made.student,
        "transcription": made.transcription,
        "evaluation": made.evaluation,
    }[kind]()


# --- fingerprints ----------------------------------------------------------------------------------------------------

SPEECH = ["data.seed=1", "data.n_train=100", "data.words=[one,two]", "data.rate_wpm=[100,150]", "data.normaliser=none",
          "data.max_seconds=9", "data.min_seconds=0.5", "data.max_utterances=5",
          "data.speed=[0.9]", "data.tempo=[0.9]", "data.pitch_shift=[2]"]  # fmt: skip
TRAINING = ["steps=9", "batch_seconds=90", "accumulate=2", "learning_rate=5e-4", "betas=[0.9,0.99]", "weight_decay=0.1",
            "warmup=0.3", "schedule=linear", "clip_norm=2", "clean=0.5", "silence=0.5", "precision=bf16",
            "validate_every=9", "validate_utterances=9", "patience=3", "train=[encoder]", "freeze=[encoder]",
            "unfreeze_every=3", "layer_decay=0.9", "average=0.9", "compile=true",
            "phases=[{steps:0.5},{}]"]  # fmt: skip
NOISE = ["snr=[3]", "snr_range=[1,2]", "snr_level=rms", "order=noise_then_reverb", "types.white.weight=2",
         "types.babble.voices=[1,2]", "operations={none:0.5,noise:0.5}", "only=0.1"]  # fmt: skip
TEACHER = [
    *SPEECH, "scoring.normaliser=none", "data.tokenizer=char", "teacher=base",
    "teacher.dropout=0.3", "teacher.seed=1",
    "noise@teacher.noise=white", "effects@teacher.noise.effects=gain",
    "teacher.loss.terms.ctc.weight=0.5", *(f"teacher.trainer.{x}" for x in TRAINING),
    *(f"teacher.noise.{x}" for x in NOISE),
]  # fmt: skip
FILTERS = ["max_wer=0.1", "min_confidence=-1", "max_compression=2.4", "max_characters_per_second=25", "min_words=1"]
STUDENT = [
    "student=base", "student.dropout=0.3", "loss=kd_hidden", "loss.teacher_input=noisy",
    "loss.terms.soft.temperature=4", "loss.terms.soft.divergence=js", "loss.terms.soft.top_k=8", "loss=consistency",
    "loss.terms.soft.weight={from:1,to:0}",
    "loss.terms.soft.weight=0.5", "loss.terms.labels.weight=0.5", "noise=white", "effects=gain", "seed=1",
    "loss.labels=teacher", "loss.on_policy=0.25", "loss.on_policy_temperature=0",
    *(f"transcripts.{x}" for x in FILTERS), "transcripts.beams=4", *(f"trainer.{x}" for x in TRAINING),
    "targets.live=true", "targets.k=64", *(f"noise.{x}" for x in NOISE),
]  # fmt: skip
EVALUATION = ["evaluate.padded=false", "evaluate.snr=[3]",
              "evaluate.beams=4", "evaluate.max_utterances=7", "evaluate.quality_utterances=3",
              "evaluate.seed=1", "evaluate.types.babble.voices=[1,2]"]  # fmt: skip
NEVER = [
    "workers=3",
    "log_every=7",
    "root=elsewhere",
    "build=never",
    "trust=[numpy]",
    "device=auto",
    "trainer.recompute=true",
    "teacher.trainer.recompute=true",
    "trainer.shard=true",
    "teacher.trainer.shard=true",
]


@pytest.mark.parametrize(
    "kind, changes",
    [
        ("speech", SPEECH),
        ("teacher", TEACHER),
        ("transcription", [*TEACHER, "transcripts.beams=4", "trainer.precision=bf16"]),
        ("student", TEACHER + STUDENT),
        ("evaluation", TEACHER + STUDENT + EVALUATION),
    ],
)
def test_every_change_that_matters_changes_the_fingerprint(kind, changes, monkeypatch):
    monkeypatch.setattr(plans, "resolve_device", lambda device: "cpu")
    hashes = {"": step(kind).hash} | {change: step(kind, change).hash for change in changes}
    same = {change for change in changes if list(hashes.values()).count(hashes[change]) > 1}
    assert not same


@pytest.mark.parametrize(
    "kind, changes",
    [
        ("speech", [*NEVER, "data.tokenizer=char", "teacher=base", "student=base", "noise=white", "seed=1"]),
        ("teacher", NEVER + STUDENT + EVALUATION),
        ("transcription", NEVER + [x for x in STUDENT if x not in ("transcripts.beams=4", "trainer.precision=bf16")]),
        ("student", NEVER + EVALUATION),
        ("evaluation", NEVER),
    ],
)
def test_nothing_else_does(kind, changes, monkeypatch):
    monkeypatch.setattr(plans, "resolve_device", lambda device: "cpu")
    expected = step(kind).hash
    assert {change: step(kind, change).hash for change in changes} == dict.fromkeys(changes, expected)


def test_the_order_of_effects_is_part_of_the_result():
    both = ["effects=[gain,clipping]", "effects=[clipping,gain]"]
    assert step("student", both[0]).hash != step("student", both[1]).hash
    assert step("student", both[0]).hash == step("student", both[0]).hash


def test_every_key_of_a_training_is_tried():
    tried = {x.partition("=")[0] for x in TRAINING} | {"adapters"}  # trainer=lora
    never = {x.partition("=")[0].removeprefix("trainer.") for x in NEVER if x.startswith("trainer.")}
    assert tried | never == set(compose("distill", []).trainer)
    assert (
        step("student", "trainer=lora").hash != step("student", "trainer=finetune", "trainer.learning_rate=1e-3").hash
    )


def test_every_filter_is_tried():
    tried = {x.partition("=")[0] for x in FILTERS} | {"beams", "timestamps", "text_before"}
    assert tried == set(compose("distill", []).transcripts)


@pytest.mark.parametrize("key", ["timestamps", "text_before"])
def test_prompts_count_where_there_are_any(key):
    """Of a student of labels that a pretrained teacher wrote: which needs a folder, so the configuration is changed."""

    def hashes(share):
        made = plan()
        made.cfg["transcripts"][key] = share
        return made.student().hash, made.transcription().hash

    (student, transcripts), (other, others) = hashes(0), hashes(0.5)
    assert student != other and (transcripts != others) == (key == "timestamps")
    assert hashes(0.2)[0] != other and hashes(0.2)[1] == others  # how often counts in the student alone


def test_what_stored_outputs_depend_on():
    def stored(stream, *overrides, transcribed=False):
        made = plan("loss=kd_hidden", *overrides)
        return made.stored_outputs(made.teacher(), stream, made.transcription() if transcribed else None).hash

    common = ["teacher=base", "data.seed=1", "trainer.precision=bf16"]
    of_logits = ["targets.k=64", "targets.sample=64", "loss.terms.soft.temperature=3"]
    does_not = ["seed=1", "noise.snr=[3]", "noise=white", "student=base", "loss.terms.soft.weight=2", "trainer.steps=9",
                "loss.terms.soft.divergence=js", "loss.terms.soft.temperature=4", "transcripts.beams=4",
                "targets.max_bytes=9"]  # fmt: skip
    for stream, counts in {"logits": common + of_logits, "hidden.encoder.1": common}.items():
        hashes = {change: stored(stream, change) for change in common + of_logits + does_not}
        assert {change for change, found in hashes.items() if found != stored(stream)} == set(counts)
    # Whose labels it is given counts for what depends on them.
    assert stored("logits") != stored("logits", transcribed=True)
    assert stored("logits", transcribed=True) != stored("logits", "transcripts.beams=4", transcribed=True)
    assert stored("hidden.encoder.1") == stored("hidden.encoder.1", transcribed=True)


def test_a_student_depends_on_what_is_stored_for_it():
    def student(*overrides):
        return plan(*overrides).student().hash

    kept = ["targets.live=true", "targets.k=64", "targets.sample=64"]
    assert len({student(*overrides) for overrides in ((), *((one,) for one in kept))}) == 4
    assert student("targets.max_bytes=9") == student()  # of no hidden layer
    assert student("loss=kd_hidden", "targets.max_bytes=9") != student("loss=kd_hidden")
    for nothing_stored in ("targets.live=true", "loss.teacher_input=noisy", "loss=transcripts"):
        assert student(nothing_stored, "targets.k=64") == student(nothing_stored)


def test_a_name_names_the_folder_and_nothing_else():
    a, b = (plan(*overrides, stage="distill").student() for overrides in ((), ("name=mine",)))
    assert a.hash == b.hash and a.folder != b.folder and b.folder.name == f"mine-{b.hash[:8]}"


def test_a_name_is_for_the_stage_in_hand_alone():
    made = plan("name=mine", stage="evaluate")
    assert made.evaluation().folder.name.startswith("mine-")
    assert made.student().folder == plan(stage="evaluate").student().folder
    assert plan("name=mine", stage="train-teacher").teacher().folder.name.startswith("mine-")


def test_the_number_format_in_force_counts(monkeypatch):
    before = step("student").hash
    monkeypatch.setattr(plans, "resolve_precision", lambda value, device: "bf16")
    assert step("student").hash != before


@pytest.mark.parametrize("kind, version", [("speech", "speech"), ("teacher", "train-teacher"), ("student", "distill"),
                                           ("student", "train-teacher"), ("evaluation", "evaluate")])  # fmt: skip
def test_a_new_version_of_the_algorithm_counts(monkeypatch, kind, version):
    before = step(kind).hash
    monkeypatch.setitem(plans.VERSIONS, version, plans.VERSIONS[version] + 1)
    assert step(kind).hash != before


def test_a_student_of_labels_alone_needs_no_teacher():
    made = plan("loss=supervised")
    assert not made.needs_teacher and [s.stage for s in made.student().chain()] == ["prepare", "distill"]
    assert made.student().hash == plan("loss=supervised", "teacher.seed=1").student().hash
    assert plan("loss=kd").needs_teacher
    assert plan("loss=supervised", "teacher=tiny", "student.init=teacher").needs_teacher
    assert not plan("loss=consistency").needs_teacher
    assert not plan("loss.terms.soft.against=itself").needs_teacher
    assert not plan("loss.terms.soft.weight=0").needs_teacher
    assert plan("loss.terms.soft.weight={from:0,to:1}").needs_teacher


# --- fingerprints of files -------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """Recordings: speech, noise of two classes, rooms."""
    rng = np.random.default_rng(0)
    for name in [
        "speech/a.wav",
        "speech/b.wav",
        *(f"noise/{c}/{i}.wav" for c in "xy" for i in range(4)),
        *(f"rooms/{i}.wav" for i in range(3)),
    ]:
        path = tmp_path / "at" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 * rng.standard_normal(16000), 16000)
    for name in "ab":
        (tmp_path / "at" / "speech" / f"{name}.txt").write_text(f"one {name}")
    return tmp_path / "at"


def student_of(files, *overrides):
    return step(
        "student", "data=folder", f"data.path={files}/speech", "noise=recorded_reverb", f"noise.folder={files}/noise",
        f"noise.rooms={files}/rooms", *overrides,
    )  # fmt: skip


def evaluation_of(files):
    return step("evaluation", "data=folder", f"data.path={files}/speech", f"evaluate.folder={files}/noise")


@pytest.mark.parametrize("change", ["a byte", "another name", "removed", "one more"])
@pytest.mark.parametrize("name", ["speech/a.wav", "speech/b.txt", "noise/x/1.wav", "rooms/2.wav"])
def test_the_content_of_files_counts(files, name, change):
    before, path = student_of(files).hash, files / name
    if change == "a byte":
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    elif change == "another name":
        path.rename(path.with_stem("c"))
    elif change == "removed":
        path.unlink()
    else:
        shutil.copy(path.with_suffix(".wav"), path.with_name("c.wav"))
    assert student_of(files).hash != before


def test_where_files_lie_and_when_they_were_written_do_not(files):
    student, evaluation = student_of(files).hash, evaluation_of(files).hash
    moved = files.rename(files.parent / "moved")
    for path in moved.rglob("*"):
        os.utime(path, (1, 1))
    assert student_of(moved).hash == student and evaluation_of(moved).hash == evaluation
    shutil.copytree(moved, moved.parent / "copy")
    (moved.parent / "copy" / "speech" / "notes.txt").write_text("a text without a recording")
    assert student_of(moved.parent / "copy").hash == student


def test_what_a_users_own_class_reads_counts_by_its_content(tmp_path):
    def inputs(path, target="mine.Microphone"):
        return plans.without({"effects": {"mine": {"_target_": target, "path": str(path), "gain": 1}}})

    one, same, other = (tmp_path / name for name in ("one.wav", "same.wav", "other.wav"))
    for path, content in ((one, "a"), (same, "a"), (other, "b")):
        path.write_text(content)
    assert inputs(one) == inputs(same) != inputs(other)
    assert inputs("no/such/file") != inputs("another")
    assert inputs(one, "rkd.effects.Gain") == inputs(other, "rkd.effects.Gain")  # rkd hashes it where it reads it


def test_new_noise_does_not_prepare_the_speech_again(files):
    before = {s.stage + s.name: s.hash for s in student_of(files).chain()}
    shutil.copy(files / "noise/x/1.wav", files / "noise/y/9.wav")
    changed = {name for s in student_of(files).chain() if before[name := s.stage + s.name] != s.hash}
    assert changed == {"preparenoise-noise", *(name for name in before if name.startswith("distill"))}


def test_a_teacher_folder_counts_by_its_content(files):
    folder = files / "teacher" / "model"
    folder.mkdir(parents=True)
    card = {"family": "whisper", "window_seconds": 4, "shape": {}}
    (folder / "rkd.json").write_text(json.dumps(card))
    before = step("student", f"teacher.path={folder.parent}").hash
    assert step("student", f"teacher.path={folder}").hash == before  # the run or its model: the same
    assert step("student", f"teacher.path={folder}", "teacher.seed=5").hash == before
    evaluated = step("evaluation", f"evaluate.systems=[{folder}]").hash
    (folder / "rkd.json").write_text(json.dumps(card, indent=1))
    assert step("student", f"teacher.path={folder}").hash != before
    assert step("evaluation", f"evaluate.systems=[{folder}]").hash != evaluated
    with pytest.raises(CheckpointError, match="not a model folder"):
        step("student", f"teacher.path={files}")
    (files / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match=r"bert.*whisper"):
        step("student", f"teacher.path={files}")


def test_several_teachers_count_in_their_order_and_with_their_weights(files):
    for name in "ab":
        (files / name).mkdir()
        (files / name / "rkd.json").write_text(
            json.dumps({"family": "ctc", "window_seconds": 4, "shape": {"name": name}})
        )
    a, b = f"{files}/a", f"{files}/b"
    students = [
        step("student", f"teacher.path={a}"),
        step("student", f"teacher.path=[{a},{b}]"),
        step("student", f"teacher.path=[{b},{a}]"),
        step("student", f"teacher.path=[{a},{b}]", "teacher.weights=[2,1]"),
    ]
    assert len({s.hash for s in students}) == 4
    assert step("student", f"teacher.path=[{a}]").hash == students[0].hash
    for kind in ("student", "evaluation"):
        needs = step(kind, f"teacher.path=[{a},{b}]").needs
        assert [s.folder.name for s in needs if s.stage == "model"] == ["a", "b"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.*noise.folder"):
        step("student", "noise=recorded", f"noise.folder={tmp_path}/nowhere")


# --- building --------------------------------------------------------------------------------------------------------


@pytest.fixture
def graph(tmp_path, monkeypatch):
    """A graph of three steps that count how often they are built, in place of the stages' own."""
    built = []

    def make(fails=None):
        def build(name):
            def write(folder):
                built.append(name)
                if fails and name == fails[0]:
                    raise fails[1]
                (folder / "result").write_text(name)

            return write

        a = Step(tmp_path, "prepare", "a", 1, {"x": 1}, [], build("a"))
        b = Step(tmp_path, "train-teacher", "b", 1, {}, [a], build("b"))
        c = Step(tmp_path, "distill", "c", 1, {}, [a, b], build("c"))
        targets = {"prepare": a, "train-teacher": b, "distill": c}
        monkeypatch.setattr(Plan, "targets", lambda self: [targets[self.stage]])
        return a, b, c

    make.built = built
    return make


def run(stage, *overrides):
    return stages.run(stage, compose(stage, ["device=cpu", *overrides]), list(overrides))


def test_what_is_missing_is_built_once_and_upstream_first(graph, capsys):
    a, b, c = graph()
    assert run("train-teacher") == b.folder and graph.built == ["a", "b"]
    assert run("distill") == c.folder and graph.built == ["a", "b", "c"]
    assert run("distill") == c.folder and graph.built == ["a", "b", "c"]
    said = capsys.readouterr()
    assert "to build" in said.err and "nothing to do" in said.err and not said.out
    assert [s.state for s in c.chain()] == ["done"] * 3 and c.chain() == [a, b, c]


def test_build_never_refuses(graph):
    a, b, _ = graph()
    run("prepare")
    with pytest.raises(ConfigError, match=f"build=never, but {b.folder}"):
        run("distill", "build=never")
    assert graph.built == ["a"]
    assert run("prepare", "build=never") == a.folder


@pytest.mark.parametrize(
    "error, state", [(Interrupted("saved at 3"), "interrupted"), (KeyboardInterrupt(), "interrupted"),
                     (DataError("no speech"), "failed"), (ZeroDivisionError("oops"), "failed")]
)  # fmt: skip
def test_a_half_done_folder_is_continued(graph, error, state):
    _, b, c = graph(fails=("b", error))
    with pytest.raises(type(error)):
        run("distill")
    status = read_status(b.folder)
    assert status["state"] == state == b.state and status["fingerprint"] == b.hash and c.state == "missing"
    assert status["error"] and (not str(error) or str(error) in status["error"])
    (b.folder / "half").write_text("kept")
    graph()
    assert run("distill") == c.folder and graph.built == ["a", "b", "b", "c"]
    assert (b.folder / "half").exists() and read_status(b.folder)["error"] is None


def test_a_run_folder_explains_itself(graph):
    a, *_ = graph()
    run("prepare", "seed=5")
    assert OmegaConf.load(a.folder / "config.yaml").seed == 5
    assert (a.folder / "overrides.txt").read_text() == "seed=5\n"
    environment = json.loads((a.folder / "environment.json").read_text())
    assert environment["versions"]["torch"].startswith("2.") and environment["python"]
    status = read_status(a.folder)
    assert status["state"] == "done" and status["seconds"] >= 0 and status["error"] is None


def test_a_root_that_cannot_be_written_is_a_resource_error(tmp_path):
    from rkd.errors import ResourceError

    (tmp_path / "file").write_text("")
    made = Step(tmp_path / "file", "prepare", "a", 1, {}, [], lambda folder: None)
    with pytest.raises(ResourceError, match="root="), recorded(made, "", []):
        pass


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_store_that_was_damaged_is_made_again(graph, capsys, damage):
    a, *_ = graph()
    kept = {}

    def write(folder):
        kept.update({path.name: path.read_bytes() for path in folder.glob("*.arrow")})
        for n in range(2):
            (folder / f"part-{n}.arrow").write_text(f"part {n}")

    a.build = write
    run("prepare")
    part = a.folder / "part-1.arrow"
    part.unlink() if damage == "missing" else part.write_text("part")
    assert a.state == "damaged"
    run("prepare")
    assert kept == {"part-0.arrow": b"part 0"} and part.read_text() == "part 1" and a.state == "done"
    assert "damaged: what is missing will be made again" in capsys.readouterr().err


def test_a_run_whose_process_is_gone_was_interrupted(graph, capsys):
    a, *_ = graph()
    run("prepare")
    status = read_status(a.folder)
    write_json(a.folder / "status.json", {**status, "state": "running"})
    assert a.state == "running"
    write_json(a.folder / "status.json", {**status, "state": "running", "pid": 2**22 + 1})
    assert a.state == "interrupted"
    run("prepare")
    assert "interrupted: to be continued" in capsys.readouterr().err and graph.built == ["a", "a"]


def test_a_damaged_status_means_not_done(graph):
    a, *_ = graph()
    run("prepare")
    (a.folder / "status.json").write_text("{")
    assert a.state == "missing"


def test_what_another_process_builds_is_waited_for_or_refused(graph, monkeypatch):
    """The same lock through another file handle stands for the other process."""
    a, _, _ = graph()
    a.folder.mkdir(parents=True)
    other = FileLock(a.folder / ".lock")
    other.acquire()
    said = []
    monkeypatch.setattr("rkd.runs.say", lambda line: said.append(line) or other.release())
    with pytest.raises(ResourceError, match=r"another process builds .*: wait for it"), held(a, wait=False):
        pass
    with held(a, wait=True):
        assert said == [f"waiting for {a.folder}, which another process builds"]
        with pytest.raises(Timeout):
            other.acquire(timeout=0)
    other.acquire(timeout=0)


def test_what_another_process_has_built_meanwhile_is_not_built_again(graph, monkeypatch):
    a, b, _ = graph()

    @contextmanager
    def meanwhile(step, wait):
        assert wait == (step is not b)  # what the run is for is refused, what it builds on is waited for
        if step is a:
            step.folder.mkdir(parents=True)
            write_json(step.folder / "status.json", {"state": "done"})
        yield

    monkeypatch.setattr(stages, "held", meanwhile)
    run("train-teacher")
    assert graph.built == ["b"]


@pytest.mark.parametrize("harm, said", [
    (lambda file: file.unlink(), "model/weights is missing"),
    (lambda file: file.write_text("ab"), "model/weights has 2 bytes instead of 5"),
])  # fmt: skip
def test_a_finished_run_that_is_not_whole_is_refused(tmp_path, harm, said):
    def build(folder):
        for name in ("model/weights", "checkpoints/last", "metrics.jsonl"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("whole")

    made = Step(tmp_path, "distill", "a", 1, {}, [], build)
    with recorded(made, "", []) as folder:
        made.build(folder)
    assert made.state == "done" and read_status(folder)["files"] == {"model/weights": 5}
    for aside in ("checkpoints/last", "metrics.jsonl", "config.yaml"):  # not part of the result
        (folder / aside).unlink()
    refuse_damaged(made)
    assert made.state == "done"
    harm(folder / "model/weights")
    with pytest.raises(CheckpointError, match=f"{said}; remove the folder"):
        refuse_damaged(made)
    assert made.state == "damaged"
    with pytest.raises(CheckpointError, match=said):
        Existing(str(folder))


def test_a_damaged_run_stops_the_stage_and_is_kept(graph):
    _, b, _ = graph()
    run("train-teacher")
    (b.folder / "result").write_text("")
    with pytest.raises(CheckpointError, match="result has 0 bytes instead of 1"):
        run("distill")
    assert graph.built == ["a", "b"] and (b.folder / "result").exists()
