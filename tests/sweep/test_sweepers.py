"""The search: it finds the lower rates, goes on where it was, and gives up on runs that others outdo."""

import math

import pytest

from rkd.config.overrides import Interval, parse_override
from rkd.sweep.sweepers import Dimension, Optuna

pytest.importorskip("optuna")

SPACE = [
    Dimension("trainer.learning_rate", (), Interval(1e-5, 1e-1, True)), Dimension("student", ("tiny", "base")),
    Dimension("trainer.steps", (), Interval(10, 20, False)),
]  # fmt: skip


def values(varied):
    found = dict(word.split("=") for word in varied)
    return float(found["trainer.learning_rate"]), found["student"], found["trainer.steps"]


def wer(varied):
    """Lowest at a learning rate of 1e-3 and with the base student."""
    rate, student, _ = values(varied)
    return 0.1 * (math.log10(rate) + 3) ** 2 + (0.0 if student == "base" else 0.2)


def search(folder, n_trials, **changes):
    sweeper = Optuna(n_trials=n_trials, **{"startup": 5, "prune": False, **changes})
    sweeper.begin(SPACE, folder)
    return sweeper


def finish(sweeper):
    seen = []
    while proposed := sweeper.propose():
        for i, varied in enumerate(proposed):
            seen.append(varied)
            sweeper.learn(i, wer(varied), False)
    return seen


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("a.b=interval(1,3)", Interval(1.0, 3.0, False)),
        ("a.b=tag(log,interval(1e-4,1e-2))", Interval(1e-4, 1e-2, True)),
        ("a.b=int(interval(1,8))", Interval(1, 8, False)),
    ],
)
def test_intervals_are_read(text, interval):
    found = parse_override(text, sweep=True).interval
    assert found == interval and isinstance(found.low, type(interval.low))


def test_the_search_leans_on_what_it_found(tmp_path):
    seen = finish(search(tmp_path, 30))
    assert len(seen) == 30
    for varied in seen:
        rate, student, steps = values(varied)
        assert 1e-5 <= rate <= 1e-1 and student in ("tiny", "base") and 10 <= int(steps) <= 20
    early, late = [sum(map(wer, runs)) / len(runs) for runs in (seen[:5], seen[-10:])]
    assert late < early


def test_a_search_goes_on_where_it_was(tmp_path):
    assert len(finish(search(tmp_path, 6))) == 6
    again = search(tmp_path, 6)
    assert len(again.earlier()) == 6 and finish(again) == []
    assert len(finish(search(tmp_path, 9, at_once=2))) == 3


@pytest.mark.parametrize("killed", [False, True])
def test_an_interrupted_run_is_proposed_again_first(tmp_path, killed):
    sweeper = search(tmp_path, 4)
    [first] = sweeper.propose()
    sweeper.learn(0, wer(first), False)
    [second] = sweeper.propose()
    if not killed:
        sweeper.learn(0, None, True)
    seen = finish(search(tmp_path, 4))
    assert seen[0] == second and len(seen) == 3


def test_a_failed_run_counts_and_is_not_made_again(tmp_path):
    sweeper = search(tmp_path, 2)
    [first] = sweeper.propose()
    sweeper.learn(0, None, False)
    [second] = finish(sweeper)
    assert second != first


def test_a_run_that_others_outdo_is_hopeless(tmp_path):
    sweeper = search(tmp_path, 10, prune=True, startup=2)
    for _ in range(3):
        sweeper.propose()
        assert not sweeper.hopeless(0, 100, 0.2)
        sweeper.learn(0, 0.1, False)
    sweeper.propose()
    assert not sweeper.hopeless(0, 100, 0.1)
    sweeper.learn(0, 0.1, False)
    sweeper.propose()
    assert sweeper.hopeless(0, 100, 0.9)
    sweeper.learn(0, 0.9, True)
    assert [given_up for _, given_up in sweeper.earlier()] == [False, False, False, False, True]
    assert len(finish(search(tmp_path, 10, prune=True))) == 5
