"""The report page: one HTML file with the figures in it, which opens without a network and needs no scripts."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rkd.metrics import align_words
from rkd.report.plots import figure_by_noise, figure_of_means, inline_svg, name_with_role, system_colours
from rkd.report.table import (
    Cell,
    Condition,
    Results,
    System,
    distinct_snrs_db,
    group_key,
    group_keys,
    is_noisy,
    mean_cell,
    mean_noisy,
    of_speech,
    percent,
    short_count,
    snr_text,
    title_of,
    wer_table,
    with_snr,
    words_on_noise,
    words_per_minute,
    words_text,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_N_WORST = 25
_QUALITY = {
    "pesq": ("PESQ", "wide-band, MOS-LQO 1 to 4.64"),
    "stoi": ("STOI", "intelligibility, at most 1"),
    "si_sdr": ("SI-SDR", "dB"),
}


def write_report(folder: Path, results: Results, utterances: Iterable[dict[str, Any]]) -> Path:
    """Write ``report.html``: one file that opens without a network and needs no scripts.

    Args:
        folder: the run folder.
        results: what ``results.json`` holds; its optional ``config`` (YAML text), ``overrides`` (list) and
            ``environment`` (mapping) are shown too.
        utterances: a row for each system, condition and utterance, with the texts and their errors.

    Returns:
        The path of the page.
    """
    import jinja2
    from markupsafe import Markup

    silent, results, worst = words_on_noise(results), of_speech(results), _worst(utterances)
    loader = jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "percent": percent, "snr": snr_text, "count": short_count, "tint": _tint, "per_minute": words_per_minute,
    }  # fmt: skip
    has_noises = len({group_key(c) for c in with_snr(results)}) > 1

    def svg(draw: Callable[[Results], Figure], description: str) -> Markup:
        return Markup(inline_svg(draw(results), results, description))

    page = environment.get_template("report.html.j2").render(
        results=results,
        headline=_headline(results),
        colours=system_colours(results),
        colour_of={system["name"]: i for i, system in enumerate(results["systems"])},
        label_of={system["name"]: name_with_role(system) for system in results["systems"]},
        main_figure=svg(figure_of_means, "Word error rate against SNR for each system"),
        noise_figure=svg(figure_by_noise, "Word error rate against SNR by noise type") if has_noises else None,
        table=wer_table(results),
        words=words_text,
        quality=_quality_tables(results),
        silent=silent,
        costs=_costs(results),
        worst={system["name"]: worst.get(system["name"], []) for system in results["systems"]},
        mixtures={name: _plain(value) for name, value in (results.get("mixtures") or {}).items()},
        environment={name: _plain(value) for name, value in (results.get("environment") or {}).items()},
    )
    path = folder / "report.html"
    unfinished = folder / ".report.html.tmp"
    unfinished.write_text(page, encoding="utf-8")
    os.replace(unfinished, path)
    return path


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _tint(wer: float | None) -> str:
    """Return how strongly a cell is coloured: from 0 to 0.5 at a WER of 100%."""
    return f"{0.5 * min(wer or 0.0, 1.0):.3f}"


def _first(results: Results, role: str) -> System | None:
    return next((system for system in results["systems"] if system["role"] == role), None)


def _clean(system: System) -> Cell:
    return mean_cell(c for c in system["conditions"] if not is_noisy(c))


def _headline(results: Results) -> dict[str, Any]:
    """Collect the numbers of the summary: the first student beside the first teacher, and every system's two means."""
    teacher, student = _first(results, "teacher"), _first(results, "student")
    share = student["params"] / teacher["params"] if student and teacher and teacher["params"] else None
    return {
        "teacher": teacher,
        "student": student,
        "params_share": None if share is None else f"{100 * share:.3g}",
        "systems": [
            {"system": system, "noisy": mean_noisy(system), "clean": _clean(system)} for system in results["systems"]
        ],
    }


def _quality_tables(results: Results) -> list[dict[str, Any]]:
    """Arrange the quality of the input audio, which is the same for every system, by condition and SNR; below it that
    of what each denoiser made of it.
    """
    conditions: list[Condition] = max((system["conditions"] for system in results["systems"]), key=len)
    tables = []
    for metric, (name, unit) in _QUALITY.items():
        scored = [c for c in conditions if c.get(metric) is not None]
        if not scored:
            continue
        snrs_db: list[float | None] = [*distinct_snrs_db(scored)]
        if any(c["snr_db"] is None for c in scored):
            snrs_db.insert(0, None)
        rows = []
        for key in group_keys(scored):
            for system in [None, *(s for s in results["systems"] if _wears_denoiser(s))]:
                group = [c for c in (system["conditions"] if system else scored) if group_key(c) == key]
                at = {c["snr_db"]: c for c in group}
                rows.append({"title": title_of(*key), "seen": key[2], "denoised_by": system and system["name"],
                             "metric": f"denoised_{metric}" if system else metric,
                             "cells": [at.get(snr_db) for snr_db in snrs_db]})  # fmt: skip
        tables.append({"metric": metric, "name": name, "unit": unit, "snrs_db": snrs_db, "rows": rows})
    return tables


def _wears_denoiser(system: System) -> bool:
    return any(c.get(f"denoised_{metric}") is not None for c in system["conditions"] for metric in _QUALITY)


def _costs(results: Results) -> list[dict[str, Any]]:
    teacher = _first(results, "teacher")
    rows = []
    for system in results["systems"]:
        share = system["params"] / teacher["params"] if teacher and teacher["params"] else None
        faster = teacher["rtf"] / system["rtf"] if teacher and teacher["rtf"] and system["rtf"] else None
        rows.append({"system": system, "params_share": share, "faster": faster})
    return rows


def _worst(utterances: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return by system the utterances with the most word errors in noise, each once, in its worst condition."""
    found: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)

    def first(of_system: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(of_system.values(), key=badness)[:_N_WORST]

    for utterance in utterances:
        if is_noisy(utterance) and utterance["errors"]:
            of_system = found[utterance["system"]]
            known = of_system.get(utterance["id"])
            if known is None or badness(utterance) < badness(known):
                of_system[utterance["id"]] = utterance
            if len(of_system) > 100 * _N_WORST:  # of millions the others need not be kept
                found[utterance["system"]] = {u["id"]: u for u in first(of_system)}
    return {
        system: [
            u | {"title": title_of(*group_key(u)), "chunks": align_words(u["reference"], u["hypothesis"])}
            for u in first(of_system)
        ]
        for system, of_system in found.items()
    }


def badness(utterance: dict[str, Any]) -> tuple[Any, ...]:
    """Return what utterances are sorted by, the worst first."""
    return -utterance["errors"], utterance["n_words"], utterance["id"]
