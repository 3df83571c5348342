"""The ablation: each method is one that rkd takes, at equal steps, and its table says what was measured."""

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
        [{"teacher": teacher, "labels": measured(30.0, 9.0), "+ KL": measured(kl, 8.0)} for _ in range(2)]
        for kl in (25.0, 24.0)
    ]
    figures = ablation.summarise(seeds, ["a", "b"], ["labels", "+ KL"], {"labels": 1e-3, "+ KL": 2e-3})
    table = ablation.markdown(figures)
    [line] = [line for line in table.splitlines() if line.startswith("| + KL")]
    # 5.5 +- t(0.975, 1) * 0.707 / sqrt(2) = 5.5 +- 6.35
    assert line.split(" | ")[-2:] == ["-5.50 [-11.85, +0.85]", "55 [-9, 119]% |"]
    assert "validation chooses: + KL." in table
    figures["params"]["+ KL"] = 26
    assert "validation chooses: labels." in ablation.markdown(figures)
