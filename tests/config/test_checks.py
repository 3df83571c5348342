"""Every mistake is one or two lines with what would be right."""

import pytest
from config_refusals import refusal

from rkd.config import STAGE_READS, compose
from rkd.errors import ConfigError

RECORDED = ["noise=recorded_reverb", "noise.folder=/noise", "noise.rooms=/rooms"]


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
        ("loss=kd_hidden targets.codebooks=7", ["targets.codebooks=7 does not divide the 128 features"]),
        ("targets.k=5", ["targets.k=5", "an even number of at least 2"]),
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
        ("effects=[gain,gain]", ["a choice is there twice"]),
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
        (
            "trainer.shard=true trainer.average=0.99",
            ["trainer.shard=true", "trainer.average works with whole ones only"],
        ),
        ("trainer.shard=true trainer.compile=true", ["trainer.compile"]),
        ("trainer.shard=true loss.balance=gradient", ["loss.balance"]),
        ("trainer.shard=true loss.on_policy=0.5", ["loss.on_policy"]),
        (
            "teacher.trainer.shard=true teacher.trainer.average=0.9",
            ["teacher.trainer.shard", "teacher.trainer.average"],
        ),
        ("transcripts.max_wer=-0.1", ["transcripts.max_wer", "at least 0"]),
        ("transcripts.min_confidence=1", ["transcripts.min_confidence", "at most 0"]),
        ("transcripts.max_were=0.1", ["nearest", "max_wer"]),
        ("transcripts.beams=0", ["at least 1"]),
        ("transcripts.timestamps=1.5", ["from 0 to 1"]),
        (
            "loss.labels=teacher transcripts.timestamps=0.5",
            ["transcripts.timestamps=0.5: student=tiny", "set it to 0"],
        ),
        (
            "loss.labels=teacher student=whisper-tiny student.vocabulary=corpus transcripts.text_before=0.2",
            ["transcripts.text_before=0.2", "vocabulary=corpus"],
        ),
        (
            "loss=transcripts student=whisper-tiny teacher=ctc_small transcripts.timestamps=0.5",
            ["teacher=ctc_small writes none"],
        ),
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
