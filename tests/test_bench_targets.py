"""The benchmark of stored targets: its table is whole, and its errors are those of what was stored."""

import pytest
import targets as bench
import torch


def test_the_table_has_a_line_for_each_distribution_and_each_way(monkeypatch):
    monkeypatch.setattr(bench, "RUNS", 2)
    lines = bench.table(16, 300, 16, 32, torch.device("cpu")).splitlines()
    assert len(lines) == 2 + 5 + 2 and {line.count("|") for line in lines} == {5}
    largest, drawn = (card.row_type.itemsize for card in bench.cards(300, 16, 32)[:2])
    assert f"| {largest} bytes a token |" in lines[-2] and f"| {drawn} bytes a token |" in lines[-1]
    assert drawn == 4 + 2 * 32


def test_the_largest_lose_what_they_miss():
    torch.manual_seed(0)
    by_name = dict(bench.distributions(16, 300))
    ways = bench.cards(300, 60, 60)
    peaked = bench.errors(by_name["30 tokens about 60 above the others"], ways)["largest"]
    flat = bench.errors(by_name["8 tokens about 8 above the others"], ways)["largest"]
    assert max(peaked) < 0.01 < flat[-1] and flat == sorted(flat)


def test_more_draws_are_nearer():
    torch.manual_seed(0)
    logits_RV = dict(bench.distributions(16, 300))["Zipf, exponent 2.5"]
    few, many = (bench.errors(logits_RV, bench.cards(300, 16, n))["drawn"] for n in (4, 4096))
    assert all(one > 10 * other for one, other in zip(few, many, strict=True))


def test_draws_are_measured_at_the_temperature_that_they_are_made_at():
    assert [card.temperatures for card in bench.cards(300, 16, 8)[1:]] == [[t] for t in bench.TEMPERATURES]
    assert pytest.approx([1.0, 2.0, 4.0]) == bench.cards(300, 16, 8)[0].temperatures
