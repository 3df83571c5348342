"""Noise: the SNR asked for, the spectra named, nobody babbling over himself, and a plain per-file reference."""

# T samples, L samples of a room response

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rkd.audio import active_level_db
from rkd.draws import Draws
from rkd.errors import ConfigError, DataError
from rkd.noise import OPERATIONS, Babble, Bank, Coloured, Corruption, Recorded, Resources

CPU = torch.device("cpu")


def resources(speech=None, clips=(), split="train"):
    return Resources(split, lambda: list(clips), lambda seconds: speech or {}, CPU)


class Hum:
    """Noise of each sample's own that needs no bank: a sum of tones at random phases and any level."""

    def sample(self, draws, lengths_B, speakers, n):
        rows = []
        for level, phase, length in zip(draws.uniform("hum"), draws.uniform("phase"), lengths_B, strict=True):
            t_T = np.arange(n)
            wave_T = np.sin(0.3 * t_T + 6 * phase) + np.sin(0.031 * t_T**1.1)
            rows.append(np.where(t_T < length, 10 ** (4 * level) * wave_T, 0))
        return torch.from_numpy(np.stack(rows)).float()


def clip(n, seed, level_db=-26.0):
    """Return 'speech' of n samples: noise that comes and goes."""
    rng = np.random.default_rng(seed)
    x_T = rng.standard_normal(n) * (0.02 + np.sin(np.arange(n) / 1500) ** 2)
    return (x_T * 10 ** (level_db / 20) / np.sqrt(np.mean(x_T**2))).astype(np.float32)


def rooms(seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for n, decay in ((400, 60.0), (2500, 500.0)):
        h_L = 0.3 * rng.standard_normal(n) * np.exp(-np.arange(n) / decay)
        h_L[0] = 1.0
        made.append(h_L.astype(np.float32))
    return made


def corruption(operations, snr=(5.0,), types=None, **kwargs):
    types = types or {"hum": Hum()}
    rooms = [torch.from_numpy(h_L) for h_L in kwargs.pop("rooms", ())]
    return Corruption(types, dict.fromkeys(types, 1.0), operations, snr, rooms=rooms, **kwargs)


def corrupt(how, clips, draws=None, levels_db=None, pad=0, device=CPU, spoken_B=None):
    """Corrupt clips as one batch."""
    lengths = [len(x_T) for x_T in clips]
    batch_BT = torch.zeros(len(clips), max(lengths) + pad)
    for row, x_T in zip(batch_BT, clips, strict=True):
        row[: len(x_T)] = torch.from_numpy(x_T)
    levels_db = levels_db if levels_db is not None else [active_level_db(x_T) for x_T in clips]
    draws = draws or Draws(0, 0, range(len(clips)))
    lengths_B = torch.tensor(lengths, device=device)
    return how(batch_BT.to(device), lengths_B, np.float32(levels_db), [None] * len(clips), draws, spoken_B)


def db(x_T):
    return 10 * np.log10(np.mean(np.square(x_T, dtype=np.float64)))


# --- SNR -------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(200, 20000), level_db=st.floats(-60, -3), snr_db=st.floats(-20, 40),
    snr_level=st.sampled_from(["active", "rms"]), pad=st.integers(0, 5000),
)  # fmt: skip
def test_the_snr_is_the_one_asked_for(n, level_db, snr_db, snr_level, pad):
    x_T = clip(n, n, level_db)
    how = corruption({"noise": 1.0}, [snr_db], snr_level=snr_level)
    # A longer clip beside it brings padding.
    mixed = corrupt(how, [x_T, clip(n + pad, 1)])
    assert mixed.snr_db[0] == snr_db
    noise_T = mixed.waveform_BT[0, :n].double().numpy() / mixed.gain_B[0].item() - x_T
    speech_db = active_level_db(x_T) if snr_level == "active" else db(x_T)
    assert speech_db - db(noise_T) == pytest.approx(snr_db, abs=0.1)
    assert (mixed.waveform_BT[0, n:] == 0).all()


@pytest.mark.parametrize("snr_level", ["active", "rms"])
def test_the_snr_holds_against_the_reverberant_speech(snr_level):
    x_T, [_, h_L] = clip(12000, 3), rooms()
    mixed = corrupt(corruption({"both": 1.0}, [5.0], snr_level=snr_level, rooms=[h_L]), [x_T])
    wet_T = scipy.signal.fftconvolve(x_T.astype(np.float64), h_L)[: len(x_T)]
    noise_T = mixed.waveform_BT[0].double().numpy() / mixed.gain_B[0].item() - wet_T
    # The room changes how strong the speech is, not how much of the time it is active.
    activity_db = active_level_db(x_T) - db(x_T) if snr_level == "active" else 0.0
    assert db(wet_T) + activity_db - db(noise_T) == pytest.approx(5.0, abs=0.1)


def test_silence_stays_silent():
    mixed = corrupt(corruption({"noise": 1.0}), [np.zeros(500, np.float32)], levels_db=[-np.inf])
    assert (mixed.waveform_BT == 0).all()


@pytest.mark.parametrize("order", ["reverb_then_noise", "noise_then_reverb"])
@pytest.mark.parametrize("target", ["early", "dry"])
def test_noise_alone_is_the_mixture_without_the_speech(order, target, device):
    clips, draws = [clip(3000 + 200 * i, i) for i in range(12)], Draws(0, 0, range(12))
    spoken_B = torch.arange(12) % 3 != 0

    def mixed(operations, spoken_B=None):
        how = corruption(operations, [0.0, 5.0], order=order, rooms=rooms(), target=target)
        return corrupt(how, clips, draws, pad=200, device=device, spoken_B=spoken_B)

    every = mixed(dict.fromkeys(OPERATIONS, 0.25), spoken_B.to(device))
    with_speech = mixed(dict.fromkeys(OPERATIONS, 0.25))
    for i, speaks in enumerate(spoken_B.tolist()):
        heard_T = (every.waveform_BT[i] / every.gain_B[i]).cpu()
        before = with_speech.operation[i]
        if speaks:
            assert every.operation[i] == before and torch.equal(every.waveform_BT[i], with_speech.waveform_BT[i])
            continue
        assert every.operation[i] == {"none": "noise", "reverb": "both"}.get(before, before)
        assert every.noise[i] == "hum" and np.isfinite(every.snr_db[i]) and (every.target_BT[i] == 0).all()
        operation = {"noise": "noise", "both": "both"}[every.operation[i]]
        both = mixed({operation: 1.0})
        no_noise = mixed({"none" if operation == "noise" else "reverb": 1.0})
        expected_T = both.waveform_BT[i] / both.gain_B[i] - no_noise.waveform_BT[i] / no_noise.gain_B[i]
        assert torch.allclose(heard_T, expected_T.cpu(), atol=1e-4)
        assert (heard_T[len(clips[i]) :] == 0).all()


EARLY = int(0.05 * 16000)


@pytest.mark.parametrize("order", ["reverb_then_noise", "noise_then_reverb"])
@pytest.mark.parametrize("target", ["early", "dry"])
def test_the_target_of_a_denoiser(order, target):
    how = corruption(dict.fromkeys(OPERATIONS, 0.25), [-5.0, 5.0], order=order, rooms=rooms(), target=target)
    clips = [clip(3000 + 200 * i, i, (-40, -26, -3)[i % 3]) for i in range(16)]
    mixed = corrupt(how, clips, pad=200)
    assert set(mixed.operation) == set(OPERATIONS) and (mixed.gain_B < 1).any()
    for i, x_T in enumerate(clips):
        n, gain = len(x_T), float(mixed.gain_B[i])
        in_room = mixed.operation[i] in ("reverb", "both") and target == "early"
        candidates = [np.convolve(x_T.astype(np.float64), h_L[:EARLY])[:n] for h_L in rooms()] if in_room else [x_T]
        distances = [np.abs(mixed.target_BT[i, :n].numpy() - gain * y_T).max() for y_T in candidates]
        assert min(distances) < 1e-5 and (mixed.target_BT[i, n:] == 0).all()
        if mixed.operation[i] == "none":
            assert torch.equal(mixed.target_BT[i], mixed.waveform_BT[i])


def test_the_target_is_in_time_with_the_mixture():
    how = corruption({"reverb": 1.0}, rooms=[longest_room()], target="early")
    x_T = np.zeros(6000, np.float32)
    x_T[2000] = 0.5
    mixed = corrupt(how, [x_T])
    heard_T, target_T = mixed.waveform_BT[0].numpy(), mixed.target_BT[0].numpy()
    assert np.abs(heard_T).argmax() == np.abs(target_T).argmax() == 2000
    assert np.allclose(heard_T[: 2000 + EARLY], target_T[: 2000 + EARLY], atol=1e-5)
    assert np.abs(heard_T[2000 + EARLY :]).max() > 1e-3 and np.abs(target_T[2000 + EARLY :]).max() < 1e-5


def longest_room():
    """Return a room that rings on for 0.15 s."""
    return (np.concatenate([[1.0], 0.1 * np.random.default_rng(0).standard_normal(2400)])).astype(np.float32)


def test_full_scale_turns_speech_and_noise_down_together():
    x_T = clip(8000, 1, -6.0)
    mixed = corrupt(corruption({"noise": 1.0}, [-5.0], snr_level="rms"), [x_T, clip(8000, 2, -60.0)])
    gain = mixed.gain_B[0].item()
    assert gain < 0.9 and mixed.waveform_BT[0].abs().max() == pytest.approx(1.0, abs=1e-6)
    noise_T = mixed.waveform_BT[0].double().numpy() - gain * x_T
    assert db(gain * x_T) - db(noise_T) == pytest.approx(-5.0, abs=0.1)
    assert mixed.gain_B[1] == 1.0  # the other clip is left alone


# --- against a plain per-file implementation -------------------------------------------------------------------------


def reference(x_T, level_db, noise_T, h_L, snr_db, snr_level, order):
    """Corrupt one file in float64: what the batched code must agree with."""
    x_T, noise_T = x_T.astype(np.float64), noise_T.astype(np.float64)

    def room(y_T):
        return y_T if h_L is None else scipy.signal.fftconvolve(y_T, h_L.astype(np.float64))[: len(y_T)]

    heard_T = room(x_T) if order == "reverb_then_noise" else x_T
    if snr_db is not None:
        speech_db = db(heard_T)
        if snr_level == "active":
            speech_db += level_db - db(x_T)
        heard_T = heard_T + noise_T * 10 ** ((speech_db - snr_db - db(noise_T)) / 20)
    if order == "noise_then_reverb":
        heard_T = room(heard_T)
    return heard_T / max(1.0, np.abs(heard_T).max())


@pytest.mark.parametrize("order", ["reverb_then_noise", "noise_then_reverb"])
@pytest.mark.parametrize("snr_level", ["active", "rms"])
def test_equal_to_the_per_file_reference(order, snr_level, device):
    shares = dict.fromkeys(OPERATIONS, 0.25)
    how = corruption(shares, [-5.0, 0.0, 10.0], snr_level=snr_level, order=order, rooms=rooms())
    clips = [clip(900 + 400 * i, i, (-40, -26, -3)[i % 3]) for i in range(21)]
    mixed = corrupt(how, clips, pad=300, device=device)
    assert mixed.waveform_BT.device.type == device.type
    mixed.waveform_BT = mixed.waveform_BT.cpu()
    assert set(mixed.operation) == set(OPERATIONS)
    for i, x_T in enumerate(clips):
        n = len(x_T)
        operation, in_room = mixed.operation[i], mixed.operation[i] in ("reverb", "both")
        noise_T = Hum().sample(Draws(0, 0, [i]), [n], [None], n)[0].numpy()
        has_noise = operation in ("noise", "both")
        assert has_noise == (mixed.noise[i] == "hum") == np.isfinite(mixed.snr_db[i])
        snr_db = mixed.snr_db[i] if has_noise else None
        expected = [
            reference(x_T, active_level_db(x_T), noise_T, h_L, snr_db, snr_level, order)
            for h_L in (rooms() if in_room else [None])
        ]
        differences = [np.abs(mixed.waveform_BT[i, :n].numpy() - heard_T).max() for heard_T in expected]
        assert sorted(differences)[0] < 1e-4
        assert len(differences) == 1 or sorted(differences)[1] > 1e-3  # the two rooms differ, and one was chosen
        assert (mixed.waveform_BT[i, n:] == 0).all()


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(100, 6000), min_size=2, max_size=5),
    st.sampled_from(["reverb_then_noise", "noise_then_reverb"]),
)
def test_batched_equals_alone(lengths, order):
    white = Coloured(0)
    white.load(resources())
    how = corruption(dict.fromkeys(OPERATIONS, 0.25), types={"white": white, "hum": Hum()}, order=order, rooms=rooms())
    clips = [clip(n, n) for n in lengths]
    together = corrupt(how, clips, pad=700)
    for i, x_T in enumerate(clips):
        alone = corrupt(how, [x_T], Draws(0, 0, [i]))
        assert alone.operation[0] == together.operation[i] and alone.noise[0] == together.noise[i]
        assert torch.allclose(alone.waveform_BT[0], together.waveform_BT[i, : len(x_T)], atol=1e-5)


# --- what is drawn, and how often ------------------------------------------------------------------------------------


def test_operations_types_and_snrs_follow_their_probabilities():
    n, shares = 4000, {"none": 0.1, "noise": 0.5, "reverb": 0.15, "both": 0.25}
    types = {"a": Hum(), "b": Hum(), "never": Hum()}
    how = Corruption(types, {"a": 1.0, "b": 3.0, "never": 0.0}, shares, [0.0, 10.0], rooms=[torch.ones(1)])
    mixed = how(torch.ones(n, 4), torch.full((n,), 4), np.zeros(n, np.float32), [None] * n, Draws(0, 0, range(n)))

    def close(share, expected, of):
        return share == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / of))

    for name, expected in shares.items():
        assert close(mixed.operation.count(name) / n, expected, n)
    noisy = [name for name in mixed.noise if name]
    assert close(len(noisy) / n, 0.75, n) and close(noisy.count("b") / len(noisy), 0.75, len(noisy))
    assert "never" not in noisy
    snr_db = mixed.snr_db[np.isfinite(mixed.snr_db)]
    assert len(snr_db) == len(noisy) and close((snr_db == 10).mean(), 0.5, len(snr_db))
    assert set(snr_db) == {0.0, 10.0}


def test_an_snr_range_is_drawn_from_evenly():
    how = corruption({"noise": 1.0}, snr_range_db=[-5, 15])
    n = 2000
    snr_db = how(torch.ones(n, 2), torch.full((n,), 2), np.zeros(n), [None] * n, Draws(0, 0, range(n))).snr_db
    assert snr_db.min() >= -5 and snr_db.max() < 15
    assert np.histogram(snr_db, 4, (-5, 15))[0] == pytest.approx(500, abs=80)


@pytest.mark.parametrize("shares", [{"noise": 1.0}, {"both": 1.0}, {"reverb": 1.0}])
def test_operations_without_what_they_need_are_refused(shares):
    with pytest.raises(ConfigError):
        Corruption({}, {}, shares, [0.0])


# --- kinds of noise --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slope", [0, -3, -6])
def test_coloured_noise_falls_by_its_slope(slope):
    noise = Coloured(slope)
    noise.load(resources())
    [row_T] = noise.sample(Draws(0, 0, [1]), [30 * 16000], [None], 30 * 16000)
    f, power = scipy.signal.welch(row_T.double().numpy(), 16000, nperseg=8192)
    band = (f > 60) & (f < 7500)
    # Every octave counts alike.
    fitted = np.polyfit(np.log2(f[band]), 10 * np.log10(power[band]), 1, w=np.sqrt(1 / f[band]))[0]
    assert fitted == pytest.approx(slope, abs=0.15)
    below = (f > 2) & (f < 18)
    assert db(row_T.numpy()) == pytest.approx(0, abs=1) and np.ptp(10 * np.log10(power[below])) < 6


def test_coloured_noise_differs_between_splits_and_samples():
    banks = {}
    for split in ("train", "test"):
        noise = Coloured(0)
        noise.load(resources(split=split))
        banks[split] = noise.sample(Draws(0, 0, [1, 2]), [8000] * 2, [None] * 2, 8000)
    assert abs(np.corrcoef(banks["train"][0], banks["test"][0])[0, 1]) < 0.05
    assert abs(np.corrcoef(banks["train"][0], banks["train"][1])[0, 1]) < 0.05
    again = Coloured(0)
    again.load(resources())
    assert torch.equal(again.sample(Draws(0, 0, [1, 2]), [8000] * 2, [None] * 2, 8000), banks["train"])


def tones(n_speakers):
    """Return speakers who each say one tone: of 100 Hz, 200 Hz, ... at levels of their own."""
    t_T = np.arange(2 * 16000) / 16000
    return {
        f"s{k}": np.round(3000 * (k + 1) * np.sin(2 * np.pi * 100 * (k + 1) * t_T)).astype(np.int16)
        for k in range(n_speakers)
    }


def heard(row_T, n_speakers):
    """Return the amplitude of each speaker's tone in a second."""
    spectrum = np.abs(np.fft.rfft(row_T[:16000].numpy())) / 8000
    return np.array([spectrum[100 * (k + 1)] for k in range(n_speakers)])


def test_babble_is_made_of_others_at_equal_levels():
    babble, n = Babble([3, 8]), 200
    babble.load(resources(tones(10)))
    speakers = [f"s{i % 10}" for i in range(n)]
    noise_BT = babble.sample(Draws(0, 0, range(n)), [16000] * n, speakers, 16000)
    voices = []
    for i, row_T in enumerate(noise_BT):
        amplitudes = heard(row_T, 10)
        assert amplitudes[i % 10] < 1e-3  # never himself
        talking = amplitudes > 1e-3
        assert amplitudes[talking] == pytest.approx(np.sqrt(2), rel=1e-2)
        voices.append(int(talking.sum()))
    assert set(voices) == set(range(3, 9))
    assert np.bincount(voices)[3:] == pytest.approx(n / 6, abs=4 * np.sqrt(n * 5 / 36))


def test_babble_of_fewer_speakers_than_asked_for():
    babble = Babble([3, 8])
    babble.load(resources(tones(2)))
    noise_BT = babble.sample(Draws(0, 0, [1, 2, 3]), [16000] * 3, ["s0", "s1", None], 16000)
    present = np.stack([heard(row_T, 2) > 1e-3 for row_T in noise_BT])
    assert present[:2].tolist() == [[False, True], [True, False]]
    assert present[2].any()  # nobody knows who speaks: anyone may babble
    with pytest.raises(DataError, match="two labelled speakers"):
        Babble().load(resources(tones(1)))


def test_recorded_noise_is_a_stretch_of_one_recording():
    clips = [(f"{i}.wav", np.arange(i * 1000, i * 1000 + 900, dtype=np.int16)) for i in range(1, 6)]
    recorded = Recorded()
    recorded.load(resources(clips=clips))
    noise_BT = recorded.sample(Draws(0, 0, range(300)), [400] * 300, [None] * 300, 500)
    starts = noise_BT[:, 0].numpy().astype(int)
    assert np.array_equal(noise_BT[:, :400], starts[:, None] + np.arange(400)) and (noise_BT[:, 400:] == 0).all()
    assert set(starts // 1000) == set(range(1, 6)) and (starts % 1000).max() <= 500
    with pytest.raises(DataError, match="no noise recordings"):
        Recorded().load(resources(clips=[]))


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 40), length=st.integers(1, 100), position=st.floats(0, 1, exclude_max=True))
def test_a_bank_reads_a_stretch_and_repeats_what_is_too_short(size, length, position):
    other, clip_T = np.full(7, 1000, np.int16), np.arange(size, dtype=np.int16)
    bank = Bank([other, clip_T, other], CPU)
    [row_T] = bank.read(np.array([1]), np.array([position]), [length], length + 3)
    expected_T = (int(row_T[0]) + np.arange(length)) % size
    assert row_T[:length].tolist() == expected_T.tolist() and (row_T[length:] == 0).all()
    if size >= length:
        assert row_T[0] <= size - length  # it lasts, without a seam


def test_every_offset_of_a_bank_is_read():
    bank = Bank([np.arange(10, dtype=np.int16)], CPU)
    position_B = np.linspace(0, 1, 200, endpoint=False)
    long = bank.read(np.zeros(200, int), position_B, [4] * 200, 4)
    assert set(long[:, 0].tolist()) == set(range(7))  # 10 - 4 + 1 offsets
    short = bank.read(np.zeros(200, int), position_B, [11] * 200, 11)
    assert set(short[:, 0].tolist()) == set(range(10))
