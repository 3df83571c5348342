"""Configuration: every mistake is one or two lines with what would be right, and hashes change with what matters."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

import rkd
from rkd.config import (
    STAGE_READS,
    compose,
    conf_folders,
    cuda_available,
    devices,
    fingerprint,
    fingerprints,
    group_choices,
    hash_files,
    instantiate,
    resolve_precision,
    unread_overrides,
)
from rkd.config.folders import group_files
from rkd.config.schema import FREE, SCHEMA, rule_for
from rkd.config.tree import leaves
from rkd.errors import ConfigError, ResourceError

RECORDED = ["noise=recorded_reverb", "noise.folder=/noise", "noise.rooms=/rooms"]
SETS = ("musan", "demand", "esc50", "urbansound8k", "wham", "slr28")
NEEDS = {  # what a choice needs, beside being chosen
    "loss=denoise": ["denoiser=mask"],
    **{f"data={name}": ["data.path=/speech"] for name in ("folder", "librispeech", "ljspeech", "common_voice", "hub")},
    "data=voicebank_demand": ["data.path=/speech"],
    "data=fsdd": ["data.path=/speech"],
    "data=manifest": ["data.path=/list.csv"],
    "data=fsdd_digits": ["data.sources.fsdd.path=/speech"],
    "noise=recorded": ["noise.folder=/noise"],
    "noise=reverb": ["noise.rooms=/rooms"],
    "noise=recorded_reverb": RECORDED[1:],
    "noise=everything": ["noise.folder=/noise"],
    **{f"noise={name}": ["noise.folder=/noise"] for name in SETS},
    "noise=robust_distiller": [
        "noise.types.musan.folder=/musan",
        "noise.types.urbansound8k.folder=/city",
        "noise.rooms=/rooms",
    ],
}
GROUPS = (
    "data", "noise", "effects", "teacher", "student", "denoiser", "loss", "trainer", "evaluate", "launcher",
    "sweeper", "experiment",
)  # fmt: skip
CHOICES = [f"{group}={choice}" for group in GROUPS for choice in group_files(group)]


def plain(config):
    return OmegaConf.to_container(config)


def refusal(*overrides, stage="distill"):
    with pytest.raises(ConfigError) as refused:
        compose(stage, list(overrides))
    message = str(refused.value)
    assert len(message.splitlines()) <= 2
    return message


# ---- composition ----


CTC_TEACHERS = tuple(f"teacher={name}" for name in ("ctc", "wav2vec2", "hubert", "wavlm", "deepspeech", "mfccnet"))


@functools.cache
def keys_of(choice):
    extra = NEEDS.get(choice, []) + (["student=ctc_tiny"] if choice.startswith(CTC_TEACHERS) else [])
    return {k for k, _ in leaves(plain(compose("evaluate", [choice, *extra])))}


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_and_every_key_has_a_rule(choice):
    assert [key for key in keys_of(choice) if rule_for(key) is None and not key.startswith(FREE)] == []


def test_every_rule_is_of_some_key():
    keys = set().union(*map(keys_of, CHOICES))
    unused = [
        pattern
        for pattern in SCHEMA
        if "*" not in pattern
        and pattern not in keys
        and not pattern.startswith(
            ("teacher.noise.types", "teacher.loss", "teacher.denoiser", "teacher.trainer.adapters")
        )
    ]
    assert unused == []


@pytest.mark.parametrize("choice", [c for c in CHOICES if c.startswith("noise=")])
def test_the_teachers_noise_has_the_same_choices(choice):
    extra = [f"teacher.{override}" for override in NEEDS.get(choice, [])]
    config = compose("train-teacher", [choice.replace("noise=", "noise@teacher.noise="), *extra])
    assert plain(config)["teacher"]["noise"] == plain(compose("distill", [choice, *NEEDS.get(choice, [])]))["noise"]


@pytest.mark.parametrize("choice", group_files("denoiser"))
def test_the_teacher_wears_the_same_denoisers(choice):
    config = plain(compose("train-teacher", [f"denoiser@teacher.denoiser={choice}"]))
    assert config["teacher"]["denoiser"] == plain(compose("distill", [f"denoiser={choice}"]))["denoiser"]


@pytest.mark.parametrize("teacher", group_files("teacher"))
def test_a_loss_of_the_teachers_own_adds_to_its_labels(teacher):
    extra = [f"teacher={teacher}", "denoiser@teacher.denoiser=mask", "++teacher.finetune=true"]
    config = plain(compose("train-teacher", [*extra, "loss@teacher.loss=denoise", "student=base"]))["teacher"]
    before = plain(compose("train-teacher", extra))["teacher"]["loss"]["terms"]
    terms = config["loss"]["terms"]
    assert set(terms) == {"labels", "ctc", "denoising"}
    assert {name: terms[name] for name in before} == before
    assert terms["labels"] == {"_target_": config["label_loss"], "needs": [config["output"]], "weight": 1.0}
    assert terms["ctc"]["weight"] == config["ctc_weight"]


def test_a_path_from_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    for path in ("~/x", "'~/x'", "~/x=1", "~"):
        config = compose("prepare", ["data=folder", f"data.path={path}"])
        assert config.data.path == "/home/ann" + path.strip("'")[1:]
    assert compose("evaluate", ["evaluate.systems=[~/a,/b,~/c]"]).evaluate.systems == [
        "/home/ann/a", "/b", "/home/ann/c"
    ]  # fmt: skip


def test_an_unknown_key_is_not_named_among_the_known_ones():
    message = refusal("+x=1")
    assert "unknown key x; the root has seed, root" in message and not message.endswith("x")


@pytest.mark.parametrize("choice", group_files("data"))
def test_every_corpus_can_be_smoke_tested(choice):
    config = compose("evaluate", [f"data={choice}", "experiment=smoke", *NEEDS.get(f"data={choice}", [])])
    assert config.data.max_utterances == 100


def test_a_list_is_one_value():
    assert list(compose("distill", ["student=tiny", "noise.snr=[0,5,10]"]).noise.snr) == [0, 5, 10]


def test_a_ctc_student_brings_a_ctc_teacher_unless_another_is_named():
    assert compose("distill", ["student=ctc_tiny"]).teacher.family == "ctc"
    assert compose("distill", ["student=ctc_tiny", "teacher=small"]).teacher.family == "whisper"


def test_nothing_of_the_student_reaches_the_teacher():
    changes = ["noise=white", "trainer.steps=7", "seed=3", "loss=supervised", "student=base", "noise.snr=[1]"]
    assert compose("distill", changes).teacher == compose("distill", []).teacher


def test_choices_are_known_by_group():
    chosen = group_choices(["student=base"])
    assert (chosen["student"], chosen["noise@teacher.noise"], chosen["experiment"]) == (
        "base",
        "generated",
        None,
    )


def test_a_users_folder_adds_and_shadows(tmp_path, monkeypatch):
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "cafe.yaml").write_text("defaults: [_common, pink, _self_]\nsnr: [3]\n")
    (tmp_path / "trainer").mkdir()
    own = (conf_folders()[0] / "trainer" / "default.yaml").read_text()
    (tmp_path / "trainer" / "default.yaml").write_text(own.replace("schedule: cosine", "schedule: linear"))
    before = compose("distill", [])
    monkeypatch.setenv("RKD_CONF", str(tmp_path))
    config = compose("distill", ["noise=cafe"])
    assert (list(config.noise.snr), config.trainer.schedule, before.trainer.schedule) == (
        [3],
        "linear",
        "cosine",
    )
    monkeypatch.setenv("RKD_CONF", str(tmp_path / "missing"))
    assert "RKD_CONF" in refusal()


@pytest.mark.parametrize(
    "overrides",
    [
        "loss.terms.soft.weight={from:1,to:0}",
        "loss.terms.soft.weight={from:1,to:0,shape:cosine}",
        "loss.terms.soft.temperature={from:4,to:1,shape:linear}",
        "loss.terms.soft.temperature=adaptive",
        "loss.terms.soft.top_k=8 loss.terms.soft.divergence=js loss.terms.soft.beta=0.1",
        "loss=kd_attention loss.terms.attention.layers=last",
        "loss=consistency teacher=ctc_small",
        "loss.on_policy=0.25 loss.on_policy_temperature=0",
        "loss.labels=teacher transcripts.beams=4 transcripts.max_wer=0.1 transcripts.min_confidence=-1",
        "loss=kd loss.terms.soft.against=itself teacher=ctc_small",
    ],
)
def test_losses_that_fit(overrides):
    compose("distill", overrides.split())


# ---- mistakes ----


def test_the_same_choice_twice_is_one():
    assert compose("distill", ["experiment=smoke", "data.n_train=9", "experiment=smoke"]).data.n_train == 9


@pytest.mark.parametrize(
    "overrides, parts",
    [
        ("trainer.lr=1", ["trainer.lr", "trainer.learning_rate", "above 0"]),
        ("trainr.steps=3", ["trainer.steps"]),
        ("snr=[0]", ["noise.snr"]),
        ("temperature=4", ["loss.terms.soft.temperature"]),
        ("+noise.foo=3", ["unknown key noise.foo"]),
        ("+teacher.noise.foo=3", ["unknown key teacher.noise.foo"]),
        ("+teacher.trainer.lr=3", ["teacher.trainer.learning_rate"]),
        ("+student.foo=3", ["no argument foo"]),
        ("+trainer.steps.foo=3", ["trainer.steps"]),
        ("~loss.terms.foo", ["labels, ctc, soft"]),
        ("~trainer.steps", ["cannot be left out"]),
        ("loss.terms.hidden.distance=cosine", ["loss=kd_hidden"]),
        ("+data.weights.a=2", ["data.weights.a: there is no source a", "no mixture"]),
        ("data.path=/x", ["data=folder"]),
        ("noise=recordd", ["nearest: recorded", "choices: babble, brown"]),
        ("teacher=null", ["choices: "]),
        ("noise@teacher.nose=white", ["noise@teacher.noise=white"]),
        ("teacher.noise=white", ["noise@teacher.noise=white"]),
        ("+experiment=smoke", ["without +"]),
        ("foo", ["key=value"]),
        ("noise.snr=[0,", ["brackets"]),
        ("noise.snr=0,5", ["noise.snr=[0,5]"]),
        ("noise.snr=5", ["a list"]),
        ("trainer.steps=ten", ["whole number"]),
        ("trainer.steps=0", ["at least 1"]),
        ("trainer.steps=1.5", ["whole number"]),
        ("trainer.steps={a:1}", ["trainer.steps"]),
        ("trainer.clean=2", ["from 0 to 1"]),
        ("trainer.learning_rate=0", ["above 0"]),
        ("noise.order=sideways", ["reverb_then_noise | noise_then_reverb"]),
        ("noise.effects.gain.probability=1", ["it needs effects=gain"]),
        ("teacher.noise.effects.gain.probability=1", ["it needs effects@teacher.noise.effects=gain"]),
        ("trainer.phases=[{step:0.5},{}]", ["trainer.phases[0] has no step; nearest: steps"]),
        ("trainer.phases=[{steps:0.5},{snr:loud}]", ["trainer.phases[1].snr=loud: allowed: a list"]),
        ("trainer.phases=[3]", ["trainer.phases[0]=3: allowed: {steps: ..."]),
        ("trainer.phases=[{steps:3000},{}]", ["nothing of trainer.steps=2000 is left for phase 2"]),
        ("trainer.phases=[{steps:0.5,weights:{labels:0,soft:0,ctc:0}},{}]", ["phase 1 gives every term the weight 0"]),
        ("trainer.phases=[{steps:0.5,train:[denoiser]},{}]", ["there is none", "denoiser=mask"]),
        ("noise.snr_range=[5,0]", ["[low, high], low not above high"]),
        ("data.words=[]", ["of at least 1"]),
        ("data=folder data=digits", ["data=folder data=digits: data is chosen twice"]),
        (
            "data=fsdd_digits data.sources.fsdd.path=/x data.weights.fsdd=0 data.weights.digits=0",
            ["data.weights: at least one source needs a weight above 0"],
        ),
        ("noise=none noise.only=0.1", ["noise.only=0.1 asks for noise alone", "noise=generated"]),
        ("noise.only=1", ["from 0 to 0.9"]),
        ("noise.effects=gain", ["write effects=gain"]),
        ("effects=gian", ["nearest: gain"]),
        ("effects=gain noise.effects.gain.gain_db=[3,1]", ["low not above high"]),
        ("effects=mu_law +noise.effects.mu_law.bits=4", ["no argument bits"]),
        ("+noise.effects.a={_target_:rkd.effects.MuLaw}", ["noise.effects.a has no probability"]),
        ("data.speed=[1]", ["data.speed=[1]", "which changes nothing"]),
        ("data.speed=[3]", ["from 0.5 to 2"]),
        ("data.pitch_shift=[-2,2,2]", ["each once"]),
        ("data.min_seconds=5 data.max_seconds=2", ["data.min_seconds=5 is above data.max_seconds=2"]),
        ("data=folder data.path=/x data.fractions=[0,0.5,0.5]", ["data.fractions=[0,0.5,0.5]", "above 0"]),
        ("device=gpu", ["auto | cpu | cuda"]),
        ("name=a/b", ["name"]),
        ("loss.terms.labels=3", ["loss.terms.labels.<key>"]),
        ("loss.terms.soft.weight={from:1}", ["has from, to", "loss.terms.soft.weight={from: 1, to: 0, shape: cosine}"]),
        ("loss.terms.soft.weight={from:1,to:0,shap:cosine}", ["from, to and, if you like, shape"]),
        ("loss.terms.soft.weight={from:-1,to:0}", ["loss.terms.soft.weight.from", "at least 0"]),
        ("loss.terms.soft.temperature={from:4}", ["loss.terms.soft.temperature", "has from, to"]),
        ("loss.terms.soft.temperature={from:4,to:0}", ["loss.terms.soft.temperature.to", "above 0"]),
        ("loss.terms.soft.temperature={from:4,to:1,shape:steps}", ["linear | cosine"]),
        ("loss.terms.soft.temperature=adaptiv", ["adaptive"]),
        ("loss.terms.soft.divergence=kll", ["nearest: kl"]),
        ("loss.terms.soft.divergence=mse loss.terms.soft.top_k=8", ["loss.terms.soft.top_k=null"]),
        ("loss.terms.soft.tempreature=2", ["loss.terms.soft.temperature"]),
        ("+loss.terms.soft.tempreature=2", ["has no argument tempreature", "temperature"]),
        ("+loss.terms.labels.against=itself", ["compares the student with nobody"]),
        ("loss=kd_attention student=ctc_tiny loss.terms.attention.part=cross", ["attention.cross", "~loss.terms"]),
        ("loss=kd_hidden loss.terms.hidden.part=decoder teacher=ctc_small", ["teacher provides", "loss=transcripts"]),
        ("loss=consistency loss.terms.consistency.teacher=[foo]", ["the student's stream foo"]),
        ("loss.on_policy=2", ["from 0 to 1"]),
        ("student=ctc_tiny loss.on_policy=0.25", ["loss.on_policy=0.25: ctc_tiny has no decoder", "student=base|"]),
        ("loss=supervised loss.on_policy=0.25", ["no loss term compares the student with a teacher", "loss=kd"]),
        ("loss@teacher.loss=denoise teacher.loss.on_policy=0.5", ["teacher.loss.on_policy=0.5"]),
        ("transcripts.max_wer=-0.1", ["transcripts.max_wer", "at least 0"]),
        ("transcripts.min_confidence=1", ["transcripts.min_confidence", "at most 0"]),
        ("transcripts.max_were=0.1", ["nearest", "max_wer"]),
        ("transcripts.beams=0", ["at least 1"]),
        ("teacher.weights=[1,2]", ["2 numbers, but teacher.path names 0"]),
        ("teacher.path=[a,b] teacher.weights=[1]", ["1 numbers, but teacher.path names 2"]),
        ("teacher.path=[]", ["teacher.path"]),
        ("hydra.run.dir=x", ["root="]),
        ("data=folder", ["set data.path="]),
        ("data=fsdd_digits", ["set data.sources.fsdd.path="]),
        ("student.dropout=${foo}", ["student.dropout", "foo"]),
        ("noise=recorded", ["set noise.folder="]),
        ("noise=slr28", ["set noise.folder="]),
        ("noise=robust_distiller noise.rooms=/x", ["set noise.types.musan.folder="]),
        ("noise=musan noise.folder=/x noise.layout=musn", ["nearest: musan"]),
        ("noise=white noise.types.white.folders=/x", ["noise.types.white.folders"]),
        ("noise=simulated_reverb noise.simulated.rooms=2", ["at least 3"]),
        ("noise=reverb", ["set noise.rooms="]),
        ("noise.rooms=/x", ["noise.operations.both="]),
        ("noise.folder=/x", ["noise=recorded"]),
        ("noise.snr=[0] noise.snr_range=[0,5]", ["exclude each other"]),
        ("noise.operations.both=0.5", ["sums to 1.5"]),
        ("noise.operations.none=-0.1 noise.operations.noise=1.1", ["from 0 to 1"]),
        ("noise=none noise.operations.none=0 noise.operations.noise=1", ["noise=generated"]),
        ("noise@teacher.noise=reverb", ["set teacher.noise.rooms="]),
        ("student.heads=3", ["student.heads=3", "student.d_model"]),
        ("student.init=teacher", ["shapes must agree"]),
        ("student.encoder_from=[0,1]", ["student.init=teacher"]),
        (
            "student=small student.init=teacher student.encoder_layers=2 student.encoder_from=[0,5]",
            ["0 to 2"],
        ),
        ("loss=supervised loss.terms.labels.weight=0 loss.terms.ctc.weight=0", ["no term"]),
        (
            "student=tiny teacher=ctc_small",
            ["loss.terms.soft", "logits", "ctc_logits, hidden.encoder", "teacher=base"],
        ),
        (
            "loss=kd_hidden loss.terms.hidden.needs=[hidden.4]",
            ["loss.terms.hidden", "hidden.4", "~loss.terms.hidden"],
        ),
        ("loss.terms.ctc._target_=my.Loss", ["trust=[my]"]),
        ("loss.terms.ctc._target_=rkd.losses.CTCC", ["rkd.losses.CTC"]),
        ("loss.terms.ctc._target_=rkd.loses.CTC", ["no module rkd.loses"]),
        ("loss.terms.ctc._target_=rkd.losses.os.system", ["no module"]),
        ("+loss.terms.ctc.temperture=2", ["no argument temperture"]),
        ("denoiser=maks", ["nearest: mask"]),
        ("teacher.denoiser=mask", ["denoiser@teacher.denoiser=mask"]),
        ("denoiser.width=9", ["denoiser=mask or denoiser=mask_conv"]),
        ("+denoiser.width=9", ["denoiser=mask"]),
        ("denoiser=convtasnet +denoiser.width=9", ["no argument width"]),
        ("denoiser=mask ~denoiser.mixing", ["add denoiser.mixing="]),
        ("denoiser=mask denoiser.mixing=loud", ["from 0 to 1, or learned | snr"]),
        ("denoiser=mask denoiser._target_=os.Mask", ["trust=[os]"]),
        ("loss=denoise", ["loss.terms.denoising", "waveform", "use denoiser=mask, or ~loss.terms.denoising"]),
        ("loss@teacher.loss=denoise", ["teacher.loss.terms.denoising", "use denoiser@teacher.denoiser=mask"]),
        ("loss@teacher.loss=kd", ["nobody teaches the teacher"]),
        ("loss@teacher.loss=transcripts", ["teacher.loss.labels=teacher", "text"]),
        ("denoiser@teacher.denoiser=mask teacher=whisper-tiny", ["add teacher.finetune=true"]),
        ("denoiser@teacher.denoiser=mask teacher.path=run", ["leave one of the two out"]),
        ("+noise.types.mine.weight=1", ["_target_"]),
        ("trust=[no_such_package]", ["no such package"]),
    ],
)
def test_a_mistake_names_what_is_wrong_and_what_would_be_right(overrides, parts):
    message = refusal(*overrides.split())
    assert all(part in message for part in parts), message


def test_a_term_without_weight_needs_nothing():
    compose("distill", ["teacher=ctc_small", "loss.terms.soft.weight=0"])


def test_a_stage_is_not_stopped_by_what_it_does_not_read():
    compose("train-teacher", ["noise=recorded"])
    compose("prepare", ["teacher=ctc_small"])
    compose("distill", ["noise@teacher.noise=reverb", "teacher.path=/finished"])


def test_recorded_noise_and_rooms_compose_for_every_stage():
    for stage in STAGE_READS:
        config = compose(stage, RECORDED)
        assert config.noise.types.recorded.folder == "/noise" and config.evaluate.rooms == "/rooms"


def test_teacher_noise_and_noise_on_one_command_line_are_two_things():
    compose("distill", ["noise.snr=[0]", "teacher.noise.snr_range=[0,5]"])


# ---- what a stage reads ----


@pytest.mark.parametrize(
    "stage, override, instead",
    [
        ("train-teacher", "noise.snr=[0]", "teacher.noise.snr"),
        ("train-teacher", "noise=white", "noise@teacher.noise=white"),
        ("train-teacher", "student=base", "teacher=base"),
        ("train-teacher", "denoiser=mask", "denoiser@teacher.denoiser=mask"),
        ("train-teacher", "denoiser.width=64", "teacher.denoiser.width"),
        ("train-teacher", "student.d_model=96", "teacher.d_model"),
        ("train-teacher", "seed=1", "teacher.seed"),
        ("train-teacher", "trainer.steps=9", "teacher.trainer.steps"),
        ("train-teacher", "loss.terms.ctc.weight=1", "teacher.loss.terms.ctc.weight"),
        ("train-teacher", "evaluate.snr=[0]", "rkd evaluate"),
        ("prepare", "trainer.steps=9", "rkd distill"),
        ("distill", "evaluate.snr=[0]", "rkd evaluate"),
    ],
)
def test_an_override_that_a_stage_does_not_read_is_said_with_what_would_do_it(stage, override, instead):
    [message] = unread_overrides(stage, [override])
    assert message.startswith(f"{stage} does not read {override.partition('=')[0]};")
    assert f" {instead} would do it" in message


@pytest.mark.parametrize(
    "override", ["device=cpu", "root=x", "experiment=smoke", "data.seed=1", "teacher.noise.snr=[0]"]
)
@pytest.mark.parametrize("stage", STAGE_READS)
def test_what_a_stage_reads_is_not_said(stage, override):
    assert unread_overrides(stage, [override]) == []


def test_evaluate_reads_everything():
    assert unread_overrides("evaluate", ["seed=1", "evaluate.snr=[0]", "student=base", "trainer.steps=2"]) == []


# ---- classes ----


@pytest.fixture
def my_package(tmp_path, monkeypatch):
    """A user's package beside which rkd is started, with a loss and a noise, and a YAML of each."""
    (tmp_path / "my_rkd.py").write_text(
        "import os\nfrom pathlib import Path\n"
        "class Quiet:\n    def __init__(self, level_db: float, inner=None):\n"
        "        self.level_db, self.inner = level_db, inner\n"
        "class Broken:\n    def __init__(self):\n        raise TypeError('inside')\n"
    )
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "quiet.yaml").write_text(
        "defaults: [_common, _self_]\ntypes:\n  quiet: {_target_: my_rkd.Quiet, level_db: -60, weight: 1.0}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RKD_CONF", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "my_rkd"
    sys.modules.pop("my_rkd", None)


def test_a_users_class_needs_one_yaml_and_trust(my_package):
    assert "trust=[my_rkd]" in refusal("noise=quiet")
    config = compose("distill", ["noise=quiet", "trust=[my_rkd]"])
    assert "my_rkd" not in sys.modules, "checked by its source, not imported"
    node = {k: v for k, v in config.noise.types.quiet.items() if k != "weight"}
    assert instantiate(node, ["my_rkd"]).level_db == -60
    assert "level_db, inner" in refusal("noise=quiet", "trust=[my_rkd]", "+noise.types.quiet.levels=3")


def test_instantiate_builds_nested_objects_and_refuses_what_does_not_fit(my_package):
    find = ["my_rkd"]
    compose("distill", ["trust=[my_rkd]"])
    outer = instantiate(
        {"_target_": "my_rkd.Quiet", "inner": {"_target_": "my_rkd.Quiet", "level_db": 1}}, find, level_db=2
    )
    assert (outer.level_db, outer.inner.level_db) == (2, 1)
    for node in (
        {"_target_": "my_rkd.Quiet"},
        {"_target_": "my_rkd.Quiet", "level_db": 1, "loud": 2},
        {"_target_": "my_rkd.Nothing"},
        {"_target_": "my_rkd.nothing.Quiet"},
        {"_target_": "subprocess.run", "args": "true"},
        {"_target_": "my_rkd.Path"},
        {"_target_": "rkd.config.classes.Path"},
    ):
        with pytest.raises(ConfigError):
            instantiate(node, find)
    with pytest.raises(TypeError, match="inside"):  # an error of the class itself stays what it is
        instantiate({"_target_": "my_rkd.Broken"}, find)


def test_yaml_and_loss_classes_agree_on_the_streams():
    from rkd.config.classes import load_class

    seen = 0
    for overrides in (["loss=kd_hidden"], ["loss=kd_hidden", "student=ctc_tiny"], ["loss=supervised"]):
        config = plain(compose("distill", overrides))
        for terms in (config["loss"]["terms"], config["teacher"]["loss"]["terms"]):
            for term in terms.values():
                found = load_class(term["_target_"], [])
                if isinstance(found.needs, tuple) and found.needs:
                    seen += 1
                    assert list(found.needs) == term["needs"]
                    assert list(found.teacher) == term.get("teacher", [])
    assert seen


# ---- fingerprints ----

values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


def same(a, b):
    """Whether two trees are equal, True not being 1."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and a == b


@given(values, values)
def test_fingerprints_are_equal_where_values_are(a, b):
    assert (fingerprint(a) == fingerprint(b)) == same(a, b)


def test_fingerprint_ignores_order_of_keys_and_kind_of_number_and_container():
    assert fingerprint({"a": 1, "b": [2.0]}) == fingerprint({"b": (2,), "a": 1.0})
    assert fingerprint(OmegaConf.create({"a": [1]})) == fingerprint({"a": [1]})
    assert len(fingerprint(None)) == 64


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "a"
    (folder / "dog").mkdir(parents=True)
    for i in range(3):
        path = folder / "dog" / f"{i}.wav"
        path.write_bytes(bytes([i]) * 100)
        os.utime(path, (1e9, 1e9))
    return folder


def all_files(folder):
    return [f for f in folder.rglob("*") if f.is_file()]


def test_hash_of_files_is_of_contents_and_relative_names(files):
    before = hash_files(all_files(files))
    assert hash_files(reversed(all_files(files))) == before
    moved = files.rename(files.with_name("elsewhere"))
    assert hash_files(all_files(moved)) == before
    (moved / "dog" / "0.wav").write_bytes(b"x" * 100)
    changed = hash_files(all_files(moved))
    assert changed != before
    (moved / "dog" / "0.wav").rename(moved / "dog" / "9.wav")
    assert hash_files(all_files(moved)) not in (before, changed)


def test_file_hashes_are_kept_by_path_size_and_time(files, monkeypatch):
    read = []
    hash_file = fingerprints._hash_file
    monkeypatch.setattr(fingerprints, "_hash_file", lambda path: read.append(path) or hash_file(path))
    before = hash_files(all_files(files))
    assert hash_files(all_files(files)) == before and len(read) == 3
    os.utime(files / "dog" / "1.wav", (1e9 + 1, 1e9 + 1))
    assert hash_files(all_files(files)) == before and len(read) == 4
    recent = files / "dog" / "2.wav"
    recent.write_bytes(b"new")
    hash_files(all_files(files))
    hash_files(all_files(files))
    assert read.count(str(recent)) == 3, "a file that has just changed is read again"


@pytest.mark.parametrize("damage", ["missing", "garbage", "empty", "folder", "readonly"])
def test_a_cache_that_cannot_be_used_costs_time_and_nothing_else(files, damage, monkeypatch):
    before = hash_files(all_files(files))
    cache = fingerprints._cache_file()
    if damage == "missing":
        cache.unlink()
    elif damage == "garbage":
        cache.write_bytes(b"garbage" * 1000)
    elif damage == "empty":
        cache.write_bytes(b"")
    elif damage == "folder":
        cache.unlink()
        cache.mkdir()
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert hash_files(all_files(files)) == before
    assert hash_files(all_files(files)) == before
    if damage == "garbage":
        assert cache.read_bytes().startswith(b"SQLite"), "made anew"


def test_no_file_is_read_a_second_time(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    read = []
    hash_file = fingerprints._hash_file
    monkeypatch.setattr(fingerprints, "_hash_file", lambda path: read.append(path) or hash_file(path))
    paths = [tmp_path / f"{i}.wav" for i in range(20)]
    for path in paths:
        path.write_bytes(b"x")
        os.utime(path, (1e9, 1e9))
    first = hash_files(paths)
    assert len(read) == 20
    assert hash_files(paths) == first and len(read) == 20


# ---- devices ----


def test_precision_follows_the_device(monkeypatch):
    devices._compute_capability.cache_clear()
    monkeypatch.setattr(devices, "_compute_capability", lambda visible: None)
    assert resolve_precision("auto", "auto") == resolve_precision("auto", "cpu") == "fp32"
    assert resolve_precision("bf16", "cpu") == "bf16"
    with pytest.raises(ConfigError, match="fp32"):
        resolve_precision("fp16", "cpu")
    with pytest.raises(ResourceError, match="device=cpu"):
        resolve_precision("auto", "cuda")
    monkeypatch.setattr(devices, "_compute_capability", lambda visible: 9)
    assert [resolve_precision(p, "auto") for p in ("auto", "fp32", "fp16", "bf16")] == [
        "bf16",
        "fp32",
        "fp16",
        "bf16",
    ]
    monkeypatch.setattr(devices, "_compute_capability", lambda visible: 7)
    assert resolve_precision("auto", "cuda") == "fp32"
    with pytest.raises(ResourceError, match="fp16"):
        resolve_precision("bf16", "cuda")


def test_no_visible_device_is_no_device(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not cuda_available()


def test_cuda_is_seen_as_torch_sees_it():
    import torch

    assert cuda_available() == torch.cuda.is_available()


def test_configuration_is_composed_without_torch():
    code = (
        "import sys; from rkd import config\n"
        "c = config.compose('evaluate', []); config.fingerprint(c); config.resolve_precision('auto', 'auto')\n"
        "print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(rkd.__file__).parents[1])}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert found.stdout == "[]\n"


# ---- pretrained models ----


@pytest.mark.parametrize("overrides, teacher, trainer", [
    (["student=whisper-tiny"], "whisper-small", 3e-5),
    (["student=whisper-tiny", "teacher=whisper-large-v3", "trainer=default"], "whisper-large-v3", 2e-3),
    (["student=wav2vec2-base-960h"], "hubert-large-ls960", 3e-5),
    (["student=tiny", "teacher=whisper-tiny"], "whisper-tiny", 2e-3),
])  # fmt: skip
def test_a_pretrained_student_brings_its_teacher_and_trainer(overrides, teacher, trainer):
    config = compose("distill", overrides)
    assert (config.teacher.name, config.trainer.learning_rate) == (teacher, trainer)
    assert config.teacher.finetune is False and config.teacher.source.count("/") == 1


@pytest.mark.parametrize("overrides, message", [
    (["teacher=whisper-tiny", "teacher.trainer.steps=9"], "add teacher.finetune=true"),
    (["teacher=whisper-tiny", "teacher.vocabulary=corpus"], "add teacher.finetune=true"),
    (["teacher=whisper-tiny", "teacher.init_from=run"], "add teacher.finetune=true, or, .* teacher.path"),
    (["+teacher.finetune=false"], "small is not pretrained"),
    (["student.init=pretrained"], "tiny is a shape of rkd's own"),
    (["student=whisper-tiny", "student.decoder_layers=1"], "add student.init=teacher"),
    (["student=whisper-tiny", "student.init=teacher"], "student=whisper-small, with student.decoder_layers"),
    (["student=tiny", "teacher=whisper-tiny", "student.init=teacher"], "models of one family"),
    (["student.init_from=run", "student.vocabulary=corpus"], "leave out student.vocabulary"),
    (["student.init_from=run", "student.init=teacher"], "exclude each other"),
    (["student=whisper-tiny", "student.language=de"], "teacher.language=en: set both"),
    (["student=whisper-tiny", "student.language=german"], "a language's code"),
    (["student=whisper-tiny", "student.window=whole"], "original | trimmed"),
    (["student=ctc_tiny", "teacher=whisper-tiny"], "or loss=transcripts"),
    (["student=tiny", "student.encoder_layers=null"], "no source to take it from"),
])  # fmt: skip
def test_what_does_not_fit_a_pretrained_model(overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose("distill", overrides)


@pytest.mark.parametrize("key", ["trainer.learning_rate", "teacher.trainer.learning_rate"])
def test_a_learning_rate_above_one_is_a_mistake(key):
    with pytest.raises(ConfigError, match="a number above 0, at most 1"):
        compose("distill", [f"{key}=1e38"])


def test_a_run_to_go_on_from_has_its_own_source():
    with pytest.raises(ConfigError, match=r"leave out student\.source"):
        compose("distill", ["student=whisper-tiny", "student.init_from=run", "student.source=/models/whisper-tiny"])
