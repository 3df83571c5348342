import copy
import json
import re
from html.parser import HTMLParser
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from rkd.report import mean_noisy, page, plot_wer, plot_wer_by_noise, print_table, wer_table, write_report

SNRS_DB = [20.0, 15.0, 10.0, 5.0, 0.0, -5.0]
NOISES = [("white", True), ("pink", True), ("babble", True), ("rain", False), ("engine", False)]
SYSTEMS = [
    # name, role, parameters, real-time factor, WER without noise, WER in hard noise
    ("teacher base", "teacher", 20_600_000, 0.041, 0.021, 0.55),
    ("student tiny", "student", 3_120_000, 0.012, 0.034, 0.68),
    ("tiny, not distilled", "baseline", 3_120_000, 0.012, 0.047, 1.05),
]


def condition(kind, noise=None, seen=None, snr_db=None, room=None, wer=0.1, n_words=1204, quality=(2.1, 0.8)):
    return {
        "condition": kind,
        "noise": noise,
        "seen": seen,
        "snr_db": snr_db,
        "room": room,
        "n_utterances": 200,
        "n_words": n_words,
        "wer": wer,
        "wer_ci": None if wer is None else [0.85 * wer, 1.15 * wer],
        "cer": None if wer is None else wer / 2,
        "pesq": quality[0],
        "stoi": quality[1],
        "n_quality": 198,
        "n_quality_failed": 2,
    }


def system(name, role, params, rtf, clean, worst):
    conditions = [condition("clean", wer=clean, quality=(4.64, 1.0)), condition("reverb", room="test", wer=1.6 * clean)]
    for kind, room in (("noise", None), ("noise+reverb", "test")):
        for i, (noise, seen) in enumerate(NOISES):
            for snr_db in SNRS_DB:
                hardness = 1 / (1 + 10 ** ((snr_db - 2 * i + (0 if seen else -2) - (3 if room else 0)) / 8))
                wer = clean + (worst - clean) * hardness
                quality = (1.1 + 0.08 * (snr_db + 5), 0.55 + 0.016 * (snr_db + 5))
                conditions.append(condition(kind, noise, seen, snr_db, room, wer, quality=quality))
    return {
        "name": name,
        "role": role,
        "family": "whisper",
        "params": params,
        "bytes": 4 * params,
        "rtf": rtf,
        "conditions": conditions,
    }


@pytest.fixture
def results():
    return {
        "name": "digits-3f9a1c20",
        "created": "2025-11-21T09:30:00+00:00",
        "device": "NVIDIA H100",
        "reference": "text",
        "warnings": ["evaluate.systems: whisper-tiny was left out, it is not on this machine"],
        "systems": [system(*row) for row in SYSTEMS],
        "mixtures": {"clean": "9b1f0e22", "rain@5dB": "77ac01d9"},
        "config": "student: tiny\nnoise:\n  snr: [0, 5, 10]\n",
        "overrides": ["student=tiny", "noise.snr=[0,5,10]"],
        "environment": {"torch": "2.11.0", "python": "3.11"},
    }


@pytest.fixture
def utterances():
    texts = [
        ("three one four one five", "three one for one five", 1),
        ("nine two six five", "nine two", 2),
        ("three five eight nine", "three five eight eight nine seven nine", 3),
        ("<b>seven</b> nine", "& seven", 2),
        ("one two three", "", 3),
    ]
    return [
        {
            "system": name,
            "condition": "noise",
            "noise": "rain",
            "seen": False,
            "snr_db": snr_db,
            "room": None,
            "id": f"speaker-{i:03d}",
            "reference": reference,
            "hypothesis": hypothesis,
            "errors": errors,
            "n_words": len(reference.split()),
        }
        for name, *_ in SYSTEMS
        for snr_db in (0.0, -5.0)
        for i, (reference, hypothesis, errors) in enumerate(texts * 7)
    ]


class Page(HTMLParser):
    """Checks that elements are closed in order, and collects what a browser would fetch."""

    VOID = ("meta", "link", "br", "img", "input", "hr")

    def __init__(self, text):
        super().__init__()
        self.open, self.fetched, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset") and not v.startswith("#")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_one_file_that_fetches_nothing(results, utterances, tmp_path):
    path = write_report(tmp_path, results, utterances)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert path == tmp_path / "report.html" and [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert page.open == [] and page.fetched == []
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert page.tags.count("svg") == 2
    assert not re.search(r"https?:|url\((?!#)|@import", text)


def test_the_page_says_the_numbers_and_the_words_behind_them(results, utterances, tmp_path):
    text = write_report(tmp_path, results, utterances).read_text(encoding="utf-8")
    student, teacher = (mean_noisy(results["systems"][i]) for i in (1, 0))
    lead = " ".join(re.sub(r"<[^>]+>", "", text.split('class="lead">')[1].split("</p>")[0]).split())
    assert lead == (
        f"student tiny has 15.1% of the parameters of teacher base and reaches a mean WER of {100 * student.wer:.1f}% "
        f"in noise, the teacher {100 * teacher.wer:.1f}%; on clean speech 3.4% and 2.1%."
    )
    assert f"over 61 conditions, {61 * 1204:,} words" in text
    assert "95% interval 2.9–3.9%; 1,204 words" in text  # the student on clean speech
    for shown in ("4.64", "whisper-tiny was left out", "77ac01d9", "noise.snr=[0,5,10]", "2.11.0"):
        assert shown in text


def test_everything_from_outside_is_escaped(results, utterances, tmp_path):
    evil = "<script>alert(1)</script>"
    results |= {"name": evil, "warnings": [evil], "config": evil, "mixtures": {evil: evil}, "overrides": [evil]}
    for renamed in (results["systems"][1], *(u for u in utterances if u["system"] == "student tiny")):
        renamed["name" if "role" in renamed else "system"] = evil
    for c in results["systems"][1]["conditions"]:
        c["room"] = c["room"] and evil
    text = write_report(tmp_path, results, utterances).read_text(encoding="utf-8")
    assert "script" not in Page(text).tags
    assert "&lt;script&gt;" in text and "&lt;b&gt;seven&lt;/b&gt;" in text


def test_worst_utterances_are_limited_and_show_what_went_wrong(results, utterances, tmp_path):
    text = write_report(tmp_path, results, utterances).read_text(encoding="utf-8")
    student = text.split("<details open>")[1].split("</details>")[0]
    assert student.count('<span class="label">ref</span>') == 25
    assert student.count("speaker-002<") == 1  # met in two conditions, shown once
    errors = [int(n) for n in re.findall(r'<td class="number">(\d+)<span', student)]
    assert errors == sorted(errors, reverse=True) and errors[0] == 3 and errors[-1] == 2
    assert "nine two <del>six five</del>" in student
    assert "<ins>" in student and "nothing" in student


def test_the_worst_of_very_many_utterances_are_those_of_all(utterances, monkeypatch):
    monkeypatch.setattr(page, "_N_WORST", 3)
    rng = np.random.default_rng(0)
    many = [
        {
            **utterances[0],
            "id": f"u{rng.integers(2000):04d}",
            "errors": int(rng.integers(0, 40)),
            "snr_db": float(i % 7),
        }
        for i in range(9000)
    ]
    expected: dict[str, dict] = {}
    for utterance in sorted(many, key=page.badness):
        expected.setdefault(utterance["id"], utterance)
    [found] = page._worst(iter(many)).values()
    assert [(u["id"], u["errors"]) for u in found] == [(u["id"], u["errors"]) for u in list(expected.values())[:3]]
    assert page._worst([{**one, "condition": "clean"} for one in many]) == {}


def test_the_mean_in_noise_is_unweighted_and_leaves_out_clean():
    conditions = [
        condition("clean", wer=0.9),
        condition("reverb", room="a", wer=0.1, n_words=10),
        condition("noise", "rain", True, 0.0, wer=0.3, n_words=1000),
        condition("noise", "rain", True, 5.0, wer=None),
    ]
    cell = mean_noisy({"conditions": conditions})
    assert (cell.wer, cell.n_words, cell.n_conditions) == (pytest.approx(0.2), 1010, 2)
    assert mean_noisy({"conditions": conditions[:1]}).wer is None


def test_the_table_orders_conditions_and_snrs(results):
    for s in results["systems"]:
        s["conditions"].reverse()
    table = wer_table(results)
    assert table.snrs_db == [None, *SNRS_DB]
    titles = [group.title for group in table.groups]
    assert titles[:3] == ["clean", "room test", "babble"]
    assert titles[-3:] == ["mean, seen noise", "mean, unseen noise", "mean, all noisy"]
    assert [group.seen for group in table.groups[2:-3]] == [True] * 6 + [False] * 4
    clean = table.groups[0].rows[1]
    assert clean.cells[0].wer == 0.034 and clean.cells[1:] == [None] * 6 and clean.mean is None
    assert table.groups[-1].rows[0].mean == mean_noisy(results["systems"][0])


def test_the_terminal_table_has_every_system_and_figure(results):
    console = Console(file=StringIO(), width=120, color_system=None)
    print_table(results, console)
    text = console.file.getvalue()
    lines = text.splitlines()
    clean = next(i for i, line in enumerate(lines) if line.split()[:1] == ["clean"])
    assert lines[clean].split() == ["clean", "teacher", "base", "2.1", "1,204"]
    assert "3.4" in lines[clean + 1] and "4.7" in lines[clean + 2]
    assert f"{100 * mean_noisy(results['systems'][1]).wer:.1f}" in text
    assert f"{61 * 1204:,}" in text and "3.12M" in text and "12.5" in text and "0.012" in text


def test_figures_are_written_in_the_format_of_their_suffix(results, tmp_path):
    plot_wer(results, tmp_path / "wer.png")
    plot_wer_by_noise(results, tmp_path / "noise.svg")
    assert (tmp_path / "wer.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "noise.svg").read_text(encoding="utf-8")
    assert "SNR (dB)" in svg and "WER (%)" in svg and "unseen" in svg and "rain + room test" in svg


def test_snr_gets_worse_to_the_right(results):
    from rkd.report.plots import figure_of_means

    axes = figure_of_means(results).axes
    assert [a.get_title(loc="left") for a in axes] == [
        "noise seen in training",
        "noise unseen in training",
        "noise seen in training, in rooms",
        "noise unseen in training, in rooms",
    ]
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["clean", "20", "15", "10", "5", "0", "−5"]
    left, right = axes[0].get_xlim()
    assert left > 20 > -5 > right
    line = axes[0].get_lines()[0]
    expected = [c["wer"] for c in results["systems"][0]["conditions"] if c["condition"] == "noise" and c["seen"]]
    at_20_db = expected[:: len(SNRS_DB)]
    assert line.get_ydata()[0] == pytest.approx(100 * sum(at_20_db) / len(at_20_db))


@pytest.fixture
def denoised(results):
    """The results of an evaluation whose student wears a denoiser, with noise alone heard, too."""
    results = copy.deepcopy(results)
    for i, system in enumerate(results["systems"]):
        for c in system["conditions"]:
            gains = (0.5, 0.05) if system["role"] == "student" else (None, None)
            for metric, gain in zip(("pesq", "stoi"), gains, strict=True):
                c[f"denoised_{metric}"] = None if gain is None else c[metric] + gain
        system["conditions"] += [
            {**condition("noise only", noise, seen, 0.0, wer=None, n_words=0, quality=(None, None)),
             "n_utterances": 50, "words_on_noise": 10 * i + n, "audio_seconds": 120.0}
            for n, (noise, seen) in enumerate(NOISES)
        ]  # fmt: skip
    return results


def plain_text(page, after):
    return " ".join(re.sub(r"<[^>]+>", " ", page.split(after)[1].split("</section>")[0]).split())


def test_denoised_audio_stands_below_the_input(denoised, results, utterances, tmp_path):
    page = write_report(tmp_path, denoised, utterances).read_text(encoding="utf-8")
    text = plain_text(page, "<h2>Quality of the input and denoised audio</h2>")
    white = next(c for c in results["systems"][1]["conditions"] if c["noise"] == "white" and c["snr_db"] == 20)
    row = text.split("white seen")[1].split("pink")[0].split("denoised by student tiny")
    assert row[0].split()[0] == f"{white['pesq']:.2f}"
    assert row[1].split()[0] == f"{white['pesq'] + 0.5:.2f}"
    assert "denoised by teacher" not in text
    assert "denoised by" not in write_report(tmp_path, results, utterances).read_text(encoding="utf-8")


def test_words_on_noise_have_a_table_of_their_own(denoised, results, utterances, tmp_path):
    page = write_report(tmp_path, denoised, utterances).read_text(encoding="utf-8")
    text = plain_text(page, "<h2>Words written where nobody speaks</h2>")
    assert "white seen 0.0 5.0 10.0 pink seen 0.5 5.5 10.5" in text
    assert ">12 words in 50 utterances" not in page and 'title="12 words in 50 utterances"' in page
    # Nothing else of the page changes for them.
    without = copy.deepcopy(denoised)
    for system in without["systems"]:
        system["conditions"] = [c for c in system["conditions"] if c["condition"] != "noise only"]
    other = write_report(tmp_path, without, utterances).read_text(encoding="utf-8")
    assert "nobody speaks" not in other
    before, after = page.split("<section>\n<h2>Words written where")
    assert "".join((before + after.split("</section>", 1)[1]).split()) == "".join(other.split())


def test_the_terminal_says_what_the_denoiser_and_noise_alone_do(denoised):
    console = Console(file=StringIO(), width=120, color_system=None)
    print_table(denoised, console)
    lines = console.file.getvalue().splitlines()
    noisy = [c for c in denoised["systems"][1]["conditions"] if c["condition"] not in ("clean", "noise only")]
    pesq = sum(c["pesq"] for c in noisy) / len(noisy)
    shown = next(line for line in lines if "PESQ" in line).split()
    assert shown == ["student", "tiny", "PESQ", f"{pesq:.2f}", f"{pesq + 0.5:.2f}"]
    words = lines[next(i for i, line in enumerate(lines) if "nobody speaks" in line) :]
    assert ["white", "(seen)", "0.0", "5.0", "10.0"] in [line.split() for line in words]
    assert ["rain", "(unseen)", "1.5", "6.5", "11.5"] in [line.split() for line in words]


@pytest.mark.parametrize(
    "case", ["clean only", "one system", "nothing measured", "teacher transcripts", "no seen flag"]
)
def test_smaller_evaluations_give_a_page_and_a_table(case, results, tmp_path):
    results = copy.deepcopy(results)
    for key in ("config", "overrides", "environment"):
        del results[key]
    if case == "clean only":
        for s in results["systems"]:
            s["conditions"] = s["conditions"][:1]
    elif case == "one system":
        results["systems"] = results["systems"][2:]
    elif case == "nothing measured":
        for s in results["systems"]:
            s["rtf"] = None
            for c in s["conditions"]:
                c |= {"wer": None, "wer_ci": None, "pesq": None, "stoi": None, "n_words": 0}
    elif case == "teacher transcripts":
        results["reference"] = case
    elif case == "no seen flag":
        for s in results["systems"]:
            for c in s["conditions"]:
                c["seen"] = None
    text = write_report(tmp_path, json.loads(json.dumps(results)), []).read_text(encoding="utf-8")
    assert Page(text).open == []
    assert ("PESQ and STOI were not measured" in text) == (case == "nothing measured")
    assert ("counted against the teacher transcripts" in text) == (case == "teacher transcripts")
    assert ("seen in training" in text) == (case not in ("clean only", "no seen flag"))
    assert ("By noise type" in text) == (case != "clean only")
    console = Console(file=StringIO(), width=80)
    print_table(results, console)
    assert ("mean, all" in console.file.getvalue()) == (case != "clean only")
