"""An override that a stage does not read is said."""

import pytest

from rkd.config import STAGE_READS, unread_overrides


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
