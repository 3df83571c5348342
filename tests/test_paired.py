"""The comparison of two ways of training: pairs by seed, and a difference with its interval."""

import json

import numpy as np
import paired
import pytest
from scipy import stats


def condition(name, wer, n_words=10):
    return {"condition": name, "wer": wer, "n_words": n_words}


def test_noise_alone_has_no_error_rate():
    conditions = [
        condition("clean", 0.1),
        condition("noise", 0.2),
        condition("noise", 0.4),
        condition("noise only", None, 0),
    ]
    found = paired.by_run({"systems": [{"name": "student x", "conditions": conditions}]})
    assert found == {"x": pytest.approx((10.0, 30.0))}


def test_the_pairs_are_those_of_a_seed(tmp_path, monkeypatch, capsys):
    """Both ways get a seed's own offset; their difference is 1, 2 and 3 points in noise."""
    told = []

    def run(stage, overrides, threads=None):
        told.append((stage, overrides))
        if stage == "distill":
            return tmp_path / "-".join(overrides[-2:])
        systems = [
            {"name": f"{way}-seed={seed}", "conditions": [condition("clean", 0.5), condition("noise", wer)]}
            for seed, offset in enumerate((0.1, 0.5, 0.3))
            for way, wer in (("x=1", offset), ("x=2", offset + 0.01 * (seed + 1)))
        ]
        (tmp_path / "results.json").write_text(json.dumps({"systems": systems}))
        return tmp_path

    monkeypatch.setattr(paired, "rkd", run)
    command = ["paired.py", "--out", str(tmp_path), "--seeds", "3", "--a", "x=1", "--b", "x=2", "--", "student=tiny"]
    monkeypatch.setattr("sys.argv", command)
    paired.main()
    trained = [overrides[1:] for stage, overrides in told if stage == "distill"]
    assert [["student=tiny", x, f"seed={seed}"] for x in ("x=1", "x=2") for seed in range(3)] == trained[1:]
    noisy = capsys.readouterr().out.splitlines()[-1].split(" | ")
    half = stats.t.ppf(0.975, 2) * np.std([1, 2, 3], ddof=1) / np.sqrt(3)
    assert noisy[1:4] == ["30.00", "32.00", f"+2.00 [{2 - half:+.2f}, {2 + half:+.2f}]"]
    assert noisy[4] == f"{stats.ttest_1samp([1, 2, 3], 0).pvalue:.2f} |"
