"""The word error rates of an evaluation, arranged: conditions in groups, a row a system, a column an SNR."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

Condition = dict[str, Any]
System = dict[str, Any]
Results = dict[str, Any]


class Cell(NamedTuple):
    """A word error rate: of one condition, or the unweighted mean over several (then also of their intervals)."""

    wer: float | None
    lo: float | None
    hi: float | None
    n_words: int
    n_conditions: int


class Row(NamedTuple):
    system: System
    cells: list[Cell | None]
    mean: Cell | None


class Group(NamedTuple):
    """Conditions that differ in SNR alone (one row a system), or all the conditions that a mean is over."""

    title: str
    seen: bool | None
    is_mean: bool
    rows: list[Row]


class Table(NamedTuple):
    snrs_db: list[float | None]  # columns; None holds the conditions that have no SNR
    groups: list[Group]


def is_noise_only(condition: Condition) -> bool:
    """Tell whether nobody speaks in a condition, so that it has words written and no error rate."""
    return condition["condition"] == "noise only"


def is_noisy(condition: Condition) -> bool:
    """Tell whether a condition is speech that is not clean."""
    return condition["condition"] != "clean" and not is_noise_only(condition)


def of_speech(results: Results) -> Results:
    """Return the results without the conditions in which nobody speaks."""
    systems = [
        {**system, "conditions": [c for c in system["conditions"] if not is_noise_only(c)]}
        for system in results["systems"]
    ]
    return {**results, "systems": systems}


class NoiseRow(NamedTuple):
    """The words that each system wrote in a noise without speech."""

    title: str
    seen: bool | None
    cells: list[Condition]


def words_on_noise(results: Results) -> list[NoiseRow]:
    """Arrange the words that were written where nobody spoke: a row a noise, a cell a system."""
    found = [[c for c in system["conditions"] if is_noise_only(c)] for system in results["systems"]]
    return [NoiseRow(cells[0]["noise"], cells[0]["seen"], list(cells)) for cells in zip(*found, strict=True)]


def words_per_minute(condition: Condition) -> str:
    return f"{60 * condition['words_on_noise'] / condition['audio_seconds']:.1f}"


def mean_noisy(system: System) -> Cell:
    """Return the unweighted mean of a system's WER over all its conditions but the clean one."""
    return mean_cell(filter(is_noisy, system["conditions"]))


def mean_of(system: System, metric: str) -> float | None:
    """Return the unweighted mean of a quality measure over a system's noisy conditions; None where it was not taken."""
    values = [c[metric] for c in system["conditions"] if is_noisy(c) and c.get(metric) is not None]
    return sum(values) / len(values) if values else None


def mean_cell(conditions: Iterable[Condition]) -> Cell:
    measured = [c for c in conditions if c["wer"] is not None]
    if not measured:
        return Cell(None, None, None, 0, 0)
    n = len(measured)
    lo = hi = None
    # Conditions share their utterances, so their errors go together: the ends are averaged, not the variances.
    if all(c.get("wer_ci") for c in measured):
        lo, hi = (sum(c["wer_ci"][end] for c in measured) / n for end in (0, 1))
    return Cell(sum(c["wer"] for c in measured) / n, lo, hi, sum(c["n_words"] for c in measured), n)


def group_key(condition: Condition) -> tuple:
    return condition["condition"], condition["noise"], condition["seen"], condition["room"]


def group_keys(conditions: list[Condition]) -> list[tuple]:
    """Return the groups of conditions in reading order: clean, rooms alone, seen noise, unseen noise."""
    keys = list(dict.fromkeys(map(group_key, conditions)))
    noises = [noise for _, noise, _, _ in keys]
    return sorted(keys, key=lambda k: (k[1] is not None, k[2] is False, noises.index(k[1]), k[3] is not None))


def title_of(condition: str, noise: str | None, seen: bool | None, room: str | None) -> str:
    place = f"room {room}" if room else "room" if "reverb" in condition else None
    return " + ".join(part for part in (noise, place) if part) or condition


def distinct_snrs_db(conditions: list[Condition]) -> list[float]:
    return sorted({c["snr_db"] for c in conditions if c["snr_db"] is not None}, reverse=True)


def all_conditions(results: Results) -> list[Condition]:
    return [c for system in results["systems"] for c in system["conditions"]]


def with_snr(results: Results) -> list[Condition]:
    return [c for c in all_conditions(results) if c["snr_db"] is not None]


def wer_table(results: Results) -> Table:
    """Arrange the word error rates: groups of conditions, a row for each system, a column for each SNR, best first."""
    conditions = all_conditions(results)
    snrs_db: list[float | None] = [*distinct_snrs_db(conditions)]
    if any(c["snr_db"] is None for c in conditions):
        snrs_db.insert(0, None)

    def group(title: str, seen: bool | None, is_mean: bool, select: Callable[[Condition], bool]) -> Group:
        rows = []
        for system in results["systems"]:
            chosen = [c for c in system["conditions"] if select(c)]
            columns = [[c for c in chosen if c["snr_db"] == snr_db] for snr_db in snrs_db]
            cells = [mean_cell(column) if column else None for column in columns]
            rows.append(Row(system, cells, mean_cell(chosen) if is_mean or len(chosen) > 1 else None))
        return Group(title, seen, is_mean, rows)

    groups = [
        group(title_of(*key), key[2], False, lambda c, key=key: group_key(c) == key) for key in group_keys(conditions)
    ]
    if {True, False} <= {c["seen"] for c in conditions}:
        groups.append(group("mean, seen noise", True, True, lambda c: c["seen"] is True))
        groups.append(group("mean, unseen noise", False, True, lambda c: c["seen"] is False))
    if any(map(is_noisy, conditions)):
        groups.append(group("mean, all noisy", None, True, is_noisy))
    return Table(snrs_db, groups)


def words_text(row: Row, is_mean: bool) -> str:
    """Say how many reference words are behind each figure of a row, or behind its mean where the row is a mean."""
    if is_mean:
        return f"{row.mean.n_words:,}" if row.mean else "–"
    counts = sorted({cell.n_words for cell in row.cells if cell})
    return "–".join(f"{n:,}" for n in dict.fromkeys([*counts[:1], *counts[-1:]]))


def percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f}"


def snr_text(snr_db: float | None) -> str:
    return "no noise" if snr_db is None else f"{snr_db:g}".replace("-", "−")


def short_count(n: float | None) -> str:
    """Write a large number short: 23.4M."""
    if n is None:
        return "–"
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:g}"
