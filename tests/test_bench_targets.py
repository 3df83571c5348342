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


def test_codebooks_are_judged_by_utterances_that_they_were_not_learned_from(tmp_path, monkeypatch):
    monkeypatch.setattr(bench.codebooks, "LEARNED_FROM", 600)
    torch.manual_seed(0)
    card = bench.Card("hidden.encoder.1", 320, 12, None, [])
    bench.write_json(tmp_path / "card.json", vars(card))
    with bench.Writer(tmp_path) as writer:
        for i in range(100):
            writer.add(str(i), bench.pack(torch.randn(10, 12), card))
    lines = bench.layer_table(tmp_path).splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == ["1", "2", "4", "24 (float16)"]
    errors = [float(line.split("|")[2]) for line in lines[:-1]]
    assert errors == sorted(errors, reverse=True)
    # 256 centroids of 600 rows are nearly the rows themselves; of other rows of 12 features they say next to nothing.
    assert errors[0] > 50
    monkeypatch.setattr(bench.codebooks, "LEARNED_FROM", 2000)
    with pytest.raises(SystemExit, match="1000 rows, of which 2000 are for the codebooks"):
        bench.layer_table(tmp_path)
