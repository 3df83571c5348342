"""Groups, choices and defaults become one configuration, of which every key has a rule."""

import functools

import pytest
from config_refusals import plain, refusal

from rkd.config import compose, conf_folders, group_choices
from rkd.config.folders import group_files
from rkd.config.schema import FREE, SCHEMA, rule_for
from rkd.config.tree import leaves

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


def test_a_source_of_a_mixture_has_the_keys_that_it_has_alone():
    alone = plain(compose("prepare", ["data=digits", "data.rate_wpm=[100,150]"]).data)
    overrides = ["data=fsdd_digits", "data.sources.fsdd.path=/speech", "data.sources.digits.rate_wpm=[100,150]"]
    mixed = plain(compose("prepare", overrides).data.sources.digits)
    differ = {"n_train", "n_validation", "n_test"}
    assert mixed.keys() - differ <= alone.keys() and all(mixed[key] == alone[key] for key in mixed.keys() - differ)


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
