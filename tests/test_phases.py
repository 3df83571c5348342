"""Phases fill a training's steps, and the learning rate follows its schedule in each."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rkd.errors import ConfigError
from rkd.phases import phases_of

TRAINER = {"steps": 10, "train": "all", "freeze": [], "learning_rate": 2.0, "warmup": 0.2, "schedule": "linear",
           "clean": 0.5, "phases": []}  # fmt: skip


def phases(*nodes, **changes):
    return phases_of(TRAINER | changes | {"phases": list(nodes)}, ["labels", "soft"])


def test_without_phases_there_is_one():
    [whole] = phases()
    assert (whole.start, whole.end, whole.train, whole.weights) == (0, 10, "all", {})
    assert [whole.hears_clean(step) for step in range(10)] == 5 * [True] + 5 * [False]


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("linear", [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("constant", [0.5, 1.0] + 8 * [1.0]),
        ("cosine", [0.5, 1.0] + [0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]),
    ],
)
def test_the_learning_rate(schedule, expected):
    [whole] = phases(schedule=schedule)
    assert [whole.rate(step) for step in range(10)] == pytest.approx([2 * share for share in expected])
    [whole] = phases(schedule=schedule, warmup=0.0)
    assert whole.rate(0) == 2.0
    _, second = phases({"steps": 7}, {"schedule": schedule, "learning_rate": 4.0, "warmup": 0.0}, schedule="constant")
    assert second.rate(7) == 4.0 and (second.rate(9) < 4.0) == (schedule != "constant")


def test_a_phase_inherits_what_it_does_not_name():
    first, second = phases({"steps": 4, "train": ["denoiser"], "snr": [5], "weights": {"soft": 0.0}}, {"clean": 0.0})
    assert (first.start, first.end, second.start, second.end) == (0, 4, 4, 10)
    assert first.train == ["denoiser"] and second.train == "all"
    assert first.snr_db == [5] and second.snr_db is None and first.weights == {"soft": 0.0}
    assert first.hears_clean(1) and not first.hears_clean(2) and not second.hears_clean(4)


def test_a_phase_may_say_that_a_term_is_off_which_is_off():
    """One list of phases serves models with and without a CTC head."""
    trainer = TRAINER | {"phases": [{"weights": {"labels": 0, "ctc": 0}}]}
    [whole] = phases_of(trainer, ["labels"], off=["ctc"])
    assert whole.weights == {"labels": 0}
    trainer["phases"][0]["weights"]["ctc"] = 0.3
    with pytest.raises(ConfigError, match="phase 1 weights ctc"):
        phases_of(trainer, ["labels"], off=["ctc"])


def test_the_last_phase_takes_what_is_left_even_less_than_a_step():
    first, last = phases({"steps": 0.99}, {}, steps=60)
    assert (first.end, last.start, last.end) == (59, 59, 60)


@given(st.integers(2, 5000), st.lists(st.floats(0.05, 0.2), min_size=1, max_size=4))
def test_shares_fill_the_steps(total, shares):
    nodes = [{"steps": share} for share in shares]
    try:
        found = phases(*nodes, {}, steps=total)
    except ConfigError:
        assert total < 40  # too few to go round
        return
    assert [p.start for p in found] == [0] + [p.end for p in found[:-1]] and found[-1].end == total
    for phase, share in zip(found, shares, strict=False):
        assert abs(phase.end - phase.start - share * total) <= 1


@pytest.mark.parametrize(
    "nodes, said",
    [
        ([{"steps": 4}, {"steps": 4}], "4, 4 of trainer.steps=10"),
        ([{"steps": 4}, {"steps": 7}], "4, 7 of"),
        ([{"steps": 10}, {}], "nothing of trainer.steps=10 is left for phase 2"),
        ([{}, {}], "phase 1 has no steps"),
        ([{"weights": {"hard": 1.0}}], "phase 1 weights hard, which is not on; the loss has the terms labels, soft"),
    ],
)
def test_phases_that_do_not_fit_are_refused(nodes, said):
    with pytest.raises(ConfigError, match=said):
        phases(*nodes)
