"""Evaluation: counts by hand, mixtures that are the same for every system and every call, conditions and seen flags."""

import noise_sets
import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf

from rkd import assemble
from rkd.config import compose
from rkd.data.batches import Batches
from rkd.data.store import Store
from rkd.draws import unit_hash
from rkd.errors import DataError
from rkd.evaluate import NOISE_ONLY, Condition, Judges, evaluate, mixtures, score, summarise_quality, validation_wer
from rkd.models.denoisers.base import Denoiser
from rkd.models.enhanced import Enhanced
from rkd.noise import Coloured, Corruption, Resources
from rkd.stages.evaluation import build_conditions
from rkd.stages.plan import Plan

CPU = torch.device("cpu")


@pytest.fixture
def test_batches(speech):
    return Batches(Store.open(speech, "test"), None, 4.0, seed=0)


def white(snr_db):
    noise = Coloured(0)
    noise.load(Resources("test", lambda: [], lambda seconds: {}, CPU))
    how = Corruption({"white": noise}, {"white": 1.0}, {"noise": 1.0}, [snr_db])
    return Condition("noise", "white", True, snr_db, how)


class Listener:
    """A system that writes what it is told to, and remembers what it heard."""

    def __init__(self, says=lambda n: "one"):
        self.says, self.heard, self.beams = says, [], []

    def transcribe(self, waveform_BT, lengths_B, beams):
        self.beams.append(beams)
        self.heard += [row[:n].clone() for row, n in zip(waveform_BT, lengths_B, strict=True)]
        return [self.says(int(n)) for n in lengths_B]


def run(systems, conditions, batches, references, max_utterances=None, n_quality=0, normalise=str.lower):
    listeners = [(system, len(system.heard)) for system in systems.values() if isinstance(system, Listener)]
    utterances = []
    rows, hashes, rtf = evaluate(
        systems, conditions, batches, max_utterances, references, normalise, CPU, 3, n_quality, 0, utterances.extend
    )
    for listener, n in listeners:
        del listener.heard[n]  # the call that is not timed
    return rows, utterances, hashes, rtf


def references_of(batches):
    return dict(zip(batches.store.ids, batches.store.texts, strict=True))


def by_content(heard):
    return sorted(heard, key=lambda x: x.tolist())


# --- counting --------------------------------------------------------------------------------------------------------


def test_score_by_hand():
    references = {"a": "one two three", "b": "four", "c": "two two"}
    texts = {"a": "one three", "b": "four one", "c": "two ten"}  # a deletion, an insertion, a substitution
    summary, rows = score(references, texts)
    assert summary["n_utterances"] == 3 and summary["n_words"] == 6 and summary["wer"] == 3 / 6
    # Characters: "two " deleted (4 of 13), " one" inserted (4, of 4), "wo" -> "en" (2 of 7).
    assert summary["cer"] == pytest.approx(10 / 24)
    low, high = summary["wer_ci"]
    assert 1 / 3 <= low <= 0.5 <= high <= 1.0  # utterances have 1/3, 1/1, 1/2
    assert [(r["id"], r["errors"], r["n_words"]) for r in rows] == [("a", 1, 3), ("b", 1, 1), ("c", 1, 2)]
    assert rows[0] == {"id": "a", "reference": "one two three", "hypothesis": "one three", "errors": 1, "n_words": 3}
    assert score(references, references)[0]["wer"] == 0.0


def test_quality_counts_what_failed():
    judged = [{"pesq": 2.0, "stoi": 0.5, "si_sdr": 10.0}, {"pesq": None, "stoi": 0.7, "si_sdr": None}]
    assert summarise_quality(judged) == {
        "n_quality": 2, "pesq": 2.0, "stoi": pytest.approx(0.6), "si_sdr": 10.0, "n_quality_failed": 1
    }  # fmt: skip
    assert summarise_quality([])["pesq"] is None  # nothing is invented


def test_validation_wer():
    heard = [
        (torch.zeros(2, 10), torch.tensor([10, 5]), ["one two", "one"]),
        (torch.zeros(1, 4), torch.tensor([4]), ["two"]),
    ]
    model = Listener(lambda n: "ONE")
    model.transcribe = lambda waveform_BT, lengths_B: ["ONE"] * len(lengths_B)
    assert validation_wer(model, heard, str.lower) == pytest.approx(2 / 4)
    with pytest.raises(DataError, match="the validation utterances have no words to compare with"):
        validation_wer(model, heard, lambda text: "")


# --- mixtures --------------------------------------------------------------------------------------------------------


def test_every_system_hears_the_same(test_batches):
    first, second = Listener(), Listener(lambda n: "TWO")
    conditions = [Condition("clean"), white(0.0), white(10.0)]
    rows, utterances, hashes, rtf = run(
        {"a": first, "b": second}, conditions, test_batches, references_of(test_batches)
    )
    n = len(test_batches.store)
    assert len(first.heard) == len(second.heard) == 3 * n and set(first.beams) == {3}
    assert all(torch.equal(x, y) for x, y in zip(first.heard, second.heard, strict=True))
    assert len(set(hashes.values())) == 3 and set(rtf) == {"a", "b"} and min(rtf.values()) > 0
    # What is heard is 16-bit PCM.
    assert all(torch.equal((x * 32768).round(), x * 32768) for x in first.heard)
    # Another call, in batches of another size, makes the same mixtures.
    again = Listener()
    others = Batches(test_batches.store, None, 100.0, seed=0)
    run({"a": again}, conditions, others, references_of(others))
    assert all(torch.equal(x, y) for x, y in zip(by_content(again.heard), by_content(first.heard), strict=True))
    one_by_one = Batches(test_batches.store, None, 1.5, seed=0)
    assert run({"a": Listener()}, conditions, one_by_one, references_of(others))[2] == hashes
    other_seed = Batches(test_batches.store, None, 4.0, seed=1)
    other_hashes = run({"a": Listener()}, conditions, other_seed, references_of(others))[2]
    assert [label for label in hashes if hashes[label] == other_hashes[label]] == ["clean"]
    by_condition = {(r["condition"], r["snr_db"]): r for r in rows["b"]}
    texts = test_batches.store.texts
    assert by_condition["clean", None]["n_words"] == sum(len(t.split()) for t in texts)
    assert {u["hypothesis"] for u in utterances if u["system"] == "b"} == {"two"}
    assert len(utterances) == 2 * 3 * n


def test_clean_is_the_store_itself(test_batches):
    batch = next(test_batches.once())
    pcm_BT = mixtures(batch, Condition("clean"))
    for row, name in zip(pcm_BT, batch.ids, strict=True):
        i = test_batches.store.ids.index(name)
        assert np.array_equal(row[: test_batches.store.n_samples[i]], test_batches.store.pcm(i))


def test_part_of_the_test_split_is_chosen_by_hash(test_batches):
    listener, references = Listener(), references_of(test_batches)
    rows, utterances, _, _ = run({"a": listener}, [Condition("clean")], test_batches, references, max_utterances=3)
    assert rows["a"][0]["n_utterances"] == 3 == len(listener.heard)
    few = {u["id"] for u in utterances}
    _, more, _, _ = run({"a": Listener()}, [Condition("clean")], test_batches, references, max_utterances=5)
    assert few < {u["id"] for u in more} and few == set(
        sorted(references, key=lambda n: unit_hash(f"evaluate/{n}"))[:3]
    )


def test_quality_belongs_to_its_condition(test_batches, monkeypatch):
    def judge(pairs, pool):
        return [
            {"pesq": 1.0, "stoi": 1.0, "si_sdr": float(np.mean((clean - heard) ** 2) > 0)} for clean, heard in pairs
        ]

    monkeypatch.setattr("rkd.evaluate.quality", judge)
    conditions = [white(0.0), Condition("clean"), white(10.0)]
    rows, *_ = run(
        {"a": Listener(), "b": Listener()}, conditions, test_batches, references_of(test_batches), n_quality=4
    )
    for system in ("a", "b"):
        assert [row["si_sdr"] for row in rows[system]] == [1.0, 0.0, 1.0]
        assert [row["n_quality"] for row in rows[system]] == [4, 4, 4]


def noise_only():
    return Condition(NOISE_ONLY, "white", True, 0.0, white(0.0).corruption)


def test_noise_only_is_the_noise_of_the_mixture_at_0_db(test_batches):
    batch = next(test_batches.once())
    mixed_BT, noise_BT = (mixtures(batch, c).astype(np.float64) / 32768 for c in (white(0.0), noise_only()))
    for row, n in enumerate(batch.speech_lengths_B.tolist()):
        speech_T = batch.clean_BT[row, :n].double().numpy()
        assert mixed_BT[row].max() < 1 and np.abs(mixed_BT[row, :n] - speech_T - noise_BT[row, :n]).max() < 2 / 32768
        noise_db = 10 * np.log10(np.mean(noise_BT[row, :n] ** 2))
        assert noise_db == pytest.approx(float(batch.levels_db[row]), abs=0.1)
        assert (noise_BT[row, n:] == 0).all()


def test_words_on_noise_are_counted(test_batches, monkeypatch):
    monkeypatch.setattr("rkd.evaluate.N_NOISE_ONLY", 5)
    listener, conditions = Listener(lambda n: "one two"), [Condition("clean"), noise_only()]
    rows, utterances, *_ = run({"a": listener}, conditions, test_batches, references_of(test_batches), n_quality=3)
    clean, silent = rows["a"]
    assert clean["words_on_noise"] is None and clean["n_quality"] == 3
    assert silent["words_on_noise"] == 10 and silent["n_utterances"] == 5 and silent["n_words"] == 0
    assert silent["wer"] is silent["cer"] is silent["wer_ci"] is silent["pesq"] is silent["stoi"] is None
    assert silent["n_quality"] == 0 and silent["audio_seconds"] == pytest.approx(
        sum(map(len, listener.heard[-5:])) / 16000
    )
    assert [u["errors"] for u in utterances if u["condition"] == NOISE_ONLY] == [2] * 5


def test_no_more_than_a_conditions_audio_is_kept(monkeypatch):
    """A judge that has not been waited for holds its audio."""
    begun, ended = [], []

    def judge(pairs, pool):
        begun.append(pairs)
        yield {"pesq": 1.0, "stoi": 1.0, "si_sdr": 1.0}
        ended.append(pairs)

    monkeypatch.setattr("rkd.evaluate.quality", judge)
    with Judges(1) as judges:
        for number in range(4):
            judges.judge(number, {None: [number]})
            assert ended == [[n] for n in range(number)]
        assert sorted(judges.finish()) == [(n, None) for n in range(4)] and ended == begun


class Halving(Denoiser):
    family = "halving"

    def forward(self, waveform_BT, lengths_B):
        return 0.5 * waveform_BT


def test_what_a_denoiser_makes_is_judged_beside_the_input(test_batches, monkeypatch):
    def judge(pairs, pool):
        return [
            {"pesq": float(np.abs(clean).max()), "stoi": float(np.abs(signal).max()), "si_sdr": None}
            for clean, signal in pairs
        ]

    monkeypatch.setattr("rkd.evaluate.quality", judge)
    worn = Enhanced(torch.nn.Identity(), Halving(), 1.0)
    worn.recogniser.transcribe = lambda waveform_BT, lengths_B, beams: ["one"] * len(lengths_B)
    conditions = [white(0.0), noise_only(), Condition("clean")]
    systems = {"plain": Listener(), "worn": worn}
    rows, *_ = run(systems, conditions, test_batches, references_of(test_batches), n_quality=4)
    for plain, row in zip(rows["plain"], rows["worn"], strict=True):
        assert [plain[f"denoised_{m}"] for m in ("pesq", "stoi", "si_sdr")] == [None] * 3
        assert {k: v for k, v in plain.items() if "denoised" not in k} == {
            k: v for k, v in row.items() if "denoised" not in k
        }
        if row["condition"] == NOISE_ONLY:
            assert row["denoised_stoi"] is None
        else:
            assert row["denoised_pesq"] == row["pesq"]  # the same reference
            assert row["denoised_stoi"] == pytest.approx(row["stoi"] / 2)


# --- conditions ------------------------------------------------------------------------------------------------------


@pytest.fixture
def recordings(tmp_path):
    """Noise recordings of four classes, and rooms."""
    rng = np.random.default_rng(0)
    for label in ("rain", "dog", "wind", "saw"):
        for i in range(6):
            path = tmp_path / "noise" / label / f"{i}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, 0.1 * rng.standard_normal(9600), 16000)
    for i in range(4):
        path = tmp_path / "rooms" / f"{i}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, np.exp(-np.arange(800) / 100) * rng.uniform(0.5, 1, 800) * 0.9, 16000)
    return tmp_path


def conditions_of(recordings, speech, *overrides):
    cfg = compose("evaluate", ["evaluate.snr=[5,-5]", f"root={recordings}/runs", *overrides])
    plan = Plan(OmegaConf.to_container(cfg), "evaluate")
    banks = list(plan.banks(plan.evaluation_types()).values())
    for step in banks + (
        [plan.rooms(plan.cfg["evaluate"]["rooms"], plan.cfg["noise"])] if plan.cfg["evaluate"]["rooms"] else []
    ):
        step.folder.mkdir(parents=True, exist_ok=True)
        step.build(step.folder)
    warnings = []
    found = build_conditions(plan, Store.open(speech, "test"), CPU, warnings)
    return found, warnings


def test_generated_noise_is_seen_if_it_was_trained_on(recordings, speech):
    found, warnings = conditions_of(recordings, speech, "noise=white")
    assert not warnings and [c.key() for c in found[:1]] == [
        {"condition": "clean", "noise": None, "seen": None, "snr_db": None, "room": None}
    ]
    seen = {(c.noise, c.seen) for c in found[1:]}
    assert seen == {("white", True), ("pink", False), ("brown", False), ("babble", False)}
    assert [(c.noise, c.snr_db) for c in found if c.condition == NOISE_ONLY] == [
        (name, 0.0) for name in ("white", "pink", "brown", "babble")
    ]
    found = [c for c in found if c.condition != NOISE_ONLY]
    assert len(found) == 1 + 4 * 2 and {c.snr_db for c in found[1:]} == {5.0, -5.0}
    quiet, _ = conditions_of(recordings, speech, "noise=white", "evaluate.noise_only=false")
    assert [c.key() for c in quiet] == [c.key() for c in found]
    assert len({c.label() for c in found}) == len(found)


def test_recorded_noise_is_seen_by_class(recordings, speech):
    found, _ = conditions_of(
        recordings,
        speech,
        "noise=recorded",
        f"noise.folder={recordings}/noise",
        "noise.split=class",
        "noise.holdout=[rain]",
    )
    recorded = {c.seen: c for c in found if c.noise == "recorded"}
    assert set(recorded) == {True, False}
    names = {seen: set(c.corruption.types["recorded"].names) for seen, c in recorded.items()}
    assert {name.split("/")[0] for name in names[False]} == {"rain"} and len(names[False]) == 6
    assert {name.split("/")[0] for name in names[True]} == {"dog", "wind", "saw"}


def test_rooms_double_the_conditions(recordings, speech):
    found, _ = conditions_of(
        recordings,
        speech,
        "noise=recorded_reverb",
        f"noise.folder={recordings}/noise",
        f"noise.rooms={recordings}/rooms",
    )
    assert found[1].condition == "reverb" and found[1].room == "measured"
    kinds = [(c.condition, c.room) for c in found if c.noise == "pink"]
    assert kinds.count(("noise", None)) == kinds.count(("noise+reverb", "measured")) == 2
    batch = next(Batches(Store.open(speech, "test"), None, 4.0, 0).once())
    assert not np.array_equal(mixtures(batch, found[1]), mixtures(batch, found[0]))


def test_several_sets_are_evaluated_each_by_itself(tmp_path, speech):
    for name in ("musan", "urbansound8k", "slr28"):
        noise_sets.SETS[name](tmp_path / name)
    found, _ = conditions_of(
        tmp_path,
        speech,
        "noise=robust_distiller",
        f"noise.types.musan.folder={tmp_path}/musan",
        f"noise.types.urbansound8k.folder={tmp_path}/urbansound8k",
        f"noise.rooms={tmp_path}/slr28",
    )
    kinds = {(c.condition, c.noise, c.seen) for c in found}
    for condition in ("noise", "noise+reverb"):
        assert {(condition, "musan", True), (condition, "urbansound8k", True)} <= kinds
    assert {c.room for c in found if "reverb" in c.condition} == {"measured and simulated"}
    names = {c.noise: c.corruption.types[c.noise].names for c in found if c.noise in ("musan", "urbansound8k")}
    assert all("noise/" in name for name in names["musan"])
    assert all("fold10/" in name and "-2-" not in name and "-9-" not in name for name in names["urbansound8k"])


def test_simulated_rooms_are_named_as_such(recordings, speech):
    found, _ = conditions_of(
        recordings,
        speech,
        "noise=simulated_reverb",
        "noise.simulated.rooms=3",
        "noise.simulated.rt60_seconds=[0.1,0.2]",
    )
    assert {c.condition: c.room for c in found}["reverb"] == "simulated"


@pytest.mark.parametrize("without", ["noise.types.babble.weight=0", "noise.operations={noise:0,none:1}"])
def test_a_type_that_the_training_does_not_mix_is_unseen(recordings, speech, without):
    found = conditions_of(recordings, speech, without)[0]
    assert {c.seen for c in found if c.noise == "babble"} == {False}


def test_a_type_of_the_evaluation_alone_is_unseen(recordings, speech):
    node = f"{{_target_:rkd.noise.Recorded,folder:{recordings}/noise,weight:1}}"
    found, _ = conditions_of(recordings, speech, "noise=white", f"+evaluate.types.street={node}")
    assert {c.seen for c in found if c.noise == "street"} == {False}


def test_recordings_for_the_evaluation_alone_are_unseen(recordings, speech):
    found, _ = conditions_of(recordings, speech, "noise=white", f"evaluate.folder={recordings}/noise")
    own = [c for c in found if c.noise == "noise" and c.condition != NOISE_ONLY]
    assert {c.seen for c in own} == {False} and {c.snr_db for c in own} == {5.0, -5.0}
    assert len(own[0].corruption.types["noise"].names) == 24  # all of it is test material


def test_babble_without_speakers_is_left_out_and_said(recordings, tmp_path):
    from rkd.data.store import StoreWriter, part_path

    (tmp_path / "summary.json").write_text('{"has_text": true}')
    with StoreWriter(part_path(tmp_path, 0)) as writer:
        writer.add("a", "test", "one", None, "en", "x", np.ones(4000, np.int16), -20.0)
    found, warnings = conditions_of(recordings, tmp_path, "noise=white")
    assert "babble" not in {c.noise for c in found}
    assert len(warnings) == 1 and "babble" in warnings[0] and "speakers" in warnings[0]


def test_training_goes_on_without_babble_where_there_is_one_speaker(tmp_path, capsys):
    from rkd.data.store import StoreWriter, part_path

    (tmp_path / "summary.json").write_text('{"has_text": true}')
    with StoreWriter(part_path(tmp_path, 0)) as writer:
        writer.add("a", "train", "one", "ann", "en", "x", np.ones(4000, np.int16), -20.0)
    store, device = Store.open(tmp_path, "train"), torch.device("cpu")

    def made(*overrides):
        noise = OmegaConf.to_container(compose("distill", list(overrides)).noise)
        return assemble.corruption(noise, store, "train", {}, None, device, [])

    assert set(made("noise=generated").types) == {"white", "pink", "brown"}
    assert "train is without babble" in capsys.readouterr().err
    with pytest.raises(DataError, match="at least two labelled speakers"):
        made("noise=babble")
    assert set(made("noise=generated", "noise.types.babble.weight=0").types) == {"white", "pink", "brown"}
    assert "babble" not in capsys.readouterr().err


def test_speech_by_speaker_is_limited(store):
    found = assemble.speech_by_speaker(store, 1.0)
    assert set(found) == {"ann", "bob", "cyd", "dan"} and all(len(pcm) == 16000 for pcm in found.values())


def test_of_many_speakers_some_are_heard_the_same_every_time(store, monkeypatch):
    monkeypatch.setattr(assemble, "SPEAKERS_HEARD", 2)
    found = assemble.speech_by_speaker(store, 1.0)
    assert sorted(found) == sorted(sorted(["ann", "bob", "cyd", "dan"], key=unit_hash)[:2])
    monkeypatch.undo()
    everyone = assemble.speech_by_speaker(store, 1.0)
    assert all(np.array_equal(pcm, everyone[speaker]) for speaker, pcm in found.items())
