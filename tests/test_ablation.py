"""The ablation: each method is one that rkd takes, at equal steps, and its table says what was measured."""

import json

import ablation
import pytest

from rkd.config import compose


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "rkd", lambda stage, overrides, threads: (stage, list(overrides)))
    return ablation.Study("/speech", "/noise", tmp_path, 800, [])


@pytest.mark.parametrize("method", ablation.METHODS)
def test_every_method_is_composed_and_all_have_the_same_steps(study, method, monkeypatch):
    starts = []
    monkeypatch.setattr(ablation.Study, "start", lambda self, *_: starts.append(self.steps // 2) or "/run")
    cfg = compose("distill", study.student(method, 1e-3, 0, "george"))
    assert cfg.trainer.steps + sum(starts) == 800 and cfg.trainer.learning_rate == 1e-3
    assert bool(cfg.student.init_from) == bool(starts)
    monkeypatch.undo()
    monkeypatch.setattr(ablation, "rkd", lambda stage, overrides, threads: overrides)
    if starts:
        assert compose("distill", study.start(method, 0, "george")).trainer.steps == 400


def measured(wer, validation):
    row = [1.0, *[wer] * len(ablation.SNR_DB), 5.0]
    return {"params": 10, "validation": validation, "row": row}


def test_the_table_says_what_closes_how_much_of_the_gap():
    """Labels 30, teacher 20; KL 25 and 24 on two seeds: half of the gap and 60% of it."""
    teacher = {"params": 100, "validation": 1.0, "row": [0.5, *[20.0] * len(ablation.SNR_DB), 3.0]}
    seeds = [
        {key: {"teacher": teacher, "labels": measured(30.0, 9.0), "+ KL": measured(kl, 8.0)} for key in "ab"}
        for kl in (25.0, 24.0)
    ]
    rates = {"labels": 1e-3, "+ KL": 2e-3}
    figures = {"methods": ["labels", "+ KL"], "speakers": ["a", "b"], "rates": rates, "seeds": seeds}
    table = ablation.markdown(figures)
    [line] = [line for line in table.splitlines() if line.startswith("| + KL")]
    # 5.5 +- t(0.975, 1) * 0.707 / sqrt(2) = 5.5 +- 6.35
    assert line.split(" | ")[-2:] == ["-5.50 [-11.85, +0.85]", "55% |"]
    assert "validation chooses: + KL." in table
    seeds[0]["a"]["+ KL"]["params"] = 26
    assert "validation chooses: labels." in ablation.markdown(figures)


def test_seeds_that_are_known_are_not_measured_again(study, tmp_path, monkeypatch, capsys):
    known = {"a": {name: measured(wer, 1.0) for name, wer in (("teacher", 9.0), ("labels", 20.0), ("+ KL", 15.0))}}
    rates = {"labels": 1e-3, "+ KL": 2e-3}
    figures = {"methods": list(rates), "speakers": ["a"], "steps": 800, "more": [], "rates": rates}
    (tmp_path / "figures.json").write_text(json.dumps({**figures, "seeds": [known]}))
    distilled = []
    monkeypatch.setattr(ablation.Study, "distill", lambda self, *of: distilled.append(of))
    monkeypatch.setattr(ablation, "measure", lambda *_: known["a"])
    command = ["ablation.py", "--fsdd", "/speech", "--noise", "/noise", "--out", str(tmp_path), "--methods", *rates]
    monkeypatch.setattr("sys.argv", [*command, "--speakers", "a", "--seeds", "3"])
    ablation.main()
    assert distilled == [(method, rate, seed, "a") for seed in (1, 2) for method, rate in rates.items()]
    assert len(json.loads((tmp_path / "figures.json").read_text())["seeds"]) == 3
    assert "and 3 seeds" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*command, "--speakers", "b"])
    with pytest.raises(SystemExit, match="has other speakers: give another --out"):
        ablation.main()
