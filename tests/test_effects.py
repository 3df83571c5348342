"""Effects: what was asked for happens, nothing moves in time, and a clip comes out the same whatever is beside it."""

# B batch, T samples, P packets

import io

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rkd import effects
from rkd.draws import Draws
from rkd.effects import Band, Clipping, Codec, Gain, MuLaw, PacketLoss, SpecAugment
from rkd.errors import ConfigError
from rkd.noise import Corruption

EFFECTS = {
    "specaugment": SpecAugment(), "gain": Gain(), "clipping": Clipping(level_db=(-20, -3)),
    "clipping of a share": Clipping(share=(0.0, 0.2)), "band": Band((50, 300), (3000, 7000)),
    "low-pass": Band(None, (3400, 3400)), "high-pass": Band((300, 300)), "mu_law": MuLaw(), "packet_loss": PacketLoss(),
    "repeated packets": PacketLoss((0.3, 0.3), 3.0, fill="repeat"), "codec": Codec(),
}  # fmt: skip


def speech(n, seed=0):
    """Return 'speech' of n samples: coloured noise that comes and goes, with all of its band in it."""
    rng = np.random.default_rng(seed)
    x_T = scipy.signal.lfilter([1.0], [1.0, -0.9], rng.standard_normal(n)) * (0.05 + np.sin(np.arange(n) / 900) ** 2)
    return (0.3 * x_T / np.abs(x_T).max()).astype(np.float32)


def batched(clips, pad=0):
    x_BT = torch.zeros(len(clips), max(map(len, clips)) + pad)
    for row, x_T in zip(x_BT, clips, strict=True):
        row[: len(x_T)] = torch.from_numpy(x_T)
    return x_BT, torch.tensor([len(x_T) for x_T in clips])


@pytest.mark.parametrize("name", EFFECTS)
@settings(max_examples=4, deadline=None)
@given(n=st.integers(1, 12000), seed=st.integers(0, 99))
def test_a_clip_comes_out_the_same_whatever_is_beside_it(name, n, seed):
    clips = [speech(n, 1), speech(9000, 2), np.zeros(700, np.float32), speech(16000, 3)]
    x_BT, lengths_B = batched(clips, pad=500)
    before_BT, draws = x_BT.clone(), Draws(seed, 0, range(4))
    y_BT = EFFECTS[name](x_BT, lengths_B, draws)
    assert torch.equal(x_BT, before_BT) and y_BT.shape == x_BT.shape and y_BT.isfinite().all()
    for row, length in enumerate(lengths_B.tolist()):
        alone_1T = EFFECTS[name](x_BT[row : row + 1, :length], lengths_B[row : row + 1], draws.rows(np.array([row])))
        # Rounding may move a few samples across the border between two steps of 8 bits.
        distance_T = (y_BT[row, :length] - alone_1T[0]).abs()
        assert distance_T.max() < 1e-5 or (name == "mu_law" and distance_T.max() < 0.01)
        assert (y_BT[row, length:] == 0).all()
    assert torch.allclose(y_BT[2], torch.zeros(()), atol=1e-3)  # silence stays silent


@pytest.mark.parametrize("name", [name for name in EFFECTS if name != "codec"])
def test_nothing_moves_in_time(name):
    x_BT, lengths_B = batched([speech(16000 + i, i) for i in range(8)])
    y_BT = EFFECTS[name](x_BT, lengths_B, Draws(1, 0, range(8)))
    for x_T, y_T in zip(x_BT.numpy(), y_BT.numpy(), strict=True):
        lags = scipy.signal.correlate(y_T, x_T, "full", "fft")
        assert lags.argmax() == len(x_T) - 1
    assert not torch.equal(x_BT, y_BT)


def test_on_the_device(device):
    x_BT, lengths_B = batched([speech(8000), speech(5000, 1)])
    for name, effect in EFFECTS.items():
        expected_BT = effect(x_BT, lengths_B, Draws(0, 0, range(2)))
        y_BT = effect(x_BT.to(device), lengths_B.to(device), Draws(0, 0, range(2)))
        assert y_BT.device.type == device.type
        # A sample on the border between two steps of a coder may fall on either side.
        assert (y_BT.cpu() - expected_BT).abs().max() < (0.05 if name == "mu_law" else 1e-4), name


# --- SpecAugment -----------------------------------------------------------------------------------------------------


def test_masks_are_as_wide_as_they_may_be_and_no_wider():
    effect, lengths_B = SpecAugment(), torch.tensor([16000] * 200 + [160000] * 200)
    masked_BKF = effect.masks(lengths_B, 257, 1254, Draws(0, 0, range(400))).numpy()
    mel_K = np.log(1 + np.linspace(0, 8000, 257) / 700)
    every_B = masked_BKF.all(1)[:, :, None].transpose(0, 2, 1)  # frames that are masked at all frequencies
    time_BF = masked_BKF.all(1)
    bands_BK = masked_BKF.all(2) if not every_B.all() else None
    share_B = (bands_BK * np.gradient(mel_K)).sum(1) / mel_K[-1]
    assert share_B.max() <= 2 * 0.34 + 0.02 and share_B.max() > 0.45
    # Two widths that are uniform up to 0.34 of the scale, which overlap now and then.
    assert 0.25 < share_B.mean() < 0.34
    seconds_B = time_BF.sum(1) * 128 / 16000
    assert 0.3 < seconds_B[:200].max() <= 2 * 0.2 + 0.02 and 1.5 < seconds_B[200:].max() <= 2.02
    last_F = time_BF[:200].any(0).nonzero()[0].max()
    assert last_F <= 125  # within the clips' second


def test_what_is_masked_is_silent_and_the_rest_is_as_it_was():
    x_BT, lengths_B = batched([speech(32000)])
    time = SpecAugment(frequency_masks=0, time_masks=1, time_seconds=9.0, time_share=0.9)
    y_T = time(x_BT, lengths_B, Draws(3, 0, [0]))[0]
    masked_F = time.masks(lengths_B, 257, 251, Draws(3, 0, [0]))[0, 0]
    silent = torch.zeros(32000, dtype=torch.bool)
    for frame in masked_F.nonzero()[2:-2, 0].tolist():
        silent[frame * 128 : (frame + 1) * 128] = True
    assert silent.sum() > 3000
    inner = (masked_F.nonzero()[:, 0].min() * 128 + 512, masked_F.nonzero()[:, 0].max() * 128 - 512)
    assert y_T[inner[0] : inner[1]].abs().max() < 1e-6
    outside = torch.cat([torch.arange(0, inner[0] - 1024), torch.arange(inner[1] + 1024, 32000)])
    assert torch.allclose(y_T[outside], x_BT[0, outside], atol=1e-5)
    nothing = SpecAugment(0, 0.3, 0)
    assert torch.allclose(nothing(x_BT, lengths_B, Draws(0, 0, [0])), x_BT, atol=1e-5)


# --- gain, clipping, bands -------------------------------------------------------------------------------------------


def test_gain_in_db():
    x_BT, lengths_B = batched([speech(4000)] * 50)
    y_BT = Gain((-20, 10))(x_BT, lengths_B, Draws(0, 0, range(50)))
    gain_db = 20 * torch.log10(y_BT.abs().amax(1) / x_BT.abs().amax(1)).numpy()
    assert gain_db.min() > -20 and gain_db.max() < 10 and gain_db.min() < -17 and gain_db.max() > 7
    assert torch.allclose(y_BT, x_BT * torch.from_numpy(10 ** (gain_db / 20)).float()[:, None], atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(10, 5000), share=st.floats(0, 0.9), level_db=st.floats(-40, 0))
def test_clipping_holds_what_is_beyond_a_threshold(n, share, level_db):
    x_BT, lengths_B = batched([speech(n), speech(6000, 1)])
    x_T = x_BT[0, :n].numpy()
    y_T = Clipping(share=(share, share))(x_BT, lengths_B, Draws(0, 0, range(2)))[0, :n].numpy()
    beyond = np.abs(y_T) < np.abs(x_T)
    assert beyond.sum() == int(share * n) and np.array_equal(y_T[~beyond], x_T[~beyond])
    assert np.allclose(np.abs(y_T[beyond]), np.abs(y_T).max()) and (np.sign(y_T) == np.sign(x_T)).all()
    y_T = Clipping(level_db=(level_db, level_db))(x_BT, lengths_B, Draws(0, 0, range(2)))[0, :n].numpy()
    threshold = np.abs(x_T).max() * 10 ** (level_db / 20)
    assert np.allclose(y_T, np.clip(x_T, -threshold, threshold), atol=1e-7)


@pytest.mark.parametrize("arguments", [{}, {"level_db": (-3, -1), "share": (0.1, 0.2)}])
def test_clipping_is_by_level_or_by_share(arguments):
    with pytest.raises(ConfigError, match="either level_db or share"):
        Clipping(**arguments)


@settings(max_examples=10, deadline=None)
@given(st.floats(100, 7900))
def test_the_filter_is_scipys(cutoff_hz):
    expected_L = scipy.signal.firwin(513, cutoff_hz, fs=16000, window="hamming")
    # SciPy's Hamming window is 0.54 - 0.46 cos, as NumPy's.
    assert np.allclose(effects.low_pass(np.array([cutoff_hz]), 513)[0], expected_L, atol=1e-9)


@pytest.mark.parametrize("hz, passes", [(150, 0), (300, 0.5), (500, 1), (3200, 1), (3400, 0.5), (3600, 0)])
def test_a_telephone_passes_300_to_3400_hz(hz, passes):
    x_T = np.sin(2 * np.pi * hz * np.arange(16000) / 16000).astype(np.float32)
    y_T = Band((300, 300), (3400, 3400))(*batched([x_T]), Draws(0, 0, [0]))[0].numpy()
    assert y_T[2000:-2000].std() / x_T.std() == pytest.approx(float(passes), abs=0.02)


# --- coders ----------------------------------------------------------------------------------------------------------


def test_g711_is_libsndfiles():
    pcm_T = np.arange(-32768, 32768, dtype=np.int16)
    file = io.BytesIO()
    soundfile.write(file, pcm_T, 8000, subtype="ULAW", format="WAV")
    file.seek(0)
    expected_T, _ = soundfile.read(file, dtype="float64")
    found_T = effects.g711(torch.from_numpy(pcm_T / 32768.0)[None])[0].numpy()
    assert np.array_equal(found_T, expected_T) and len(np.unique(found_T)) == 255  # one of 256 is -0


def test_mu_law_leaves_little_noise_and_nothing_above_4_khz():
    low = scipy.signal.butter(8, 3000, fs=16000, output="sos")
    x_BT, lengths_B = batched([scipy.signal.sosfilt(low, speech(16000)).astype(np.float32)])
    y_BT = MuLaw()(x_BT, lengths_B, Draws(0, 0, [0]))
    error_db = 20 * np.log10((y_BT - x_BT).std() / x_BT.std())
    assert -45 < error_db < -30  # 8 bits of mu-law: about 37 dB
    power_K = np.abs(np.fft.rfft(y_BT[0].numpy())) ** 2
    assert power_K[len(power_K) * 17 // 32 :].sum() < 1e-4 * power_K.sum()


@pytest.mark.parametrize("kind", effects.CODECS)
def test_a_codec_is_in_time_with_what_went_in(kind):
    for n in (700, 16000, 40001):
        x_T = speech(n, n)
        y_T = effects.coded(x_T, kind, 0.8)
        assert len(y_T) == n and abs(effects.delay(np.pad(x_T, 50), np.pad(y_T, 50), 100)) <= 1
    band_T = scipy.signal.sosfiltfilt(scipy.signal.butter(8, 3000, fs=16000, output="sos"), x_T)
    y_T = scipy.signal.sosfiltfilt(scipy.signal.butter(8, 3000, fs=16000, output="sos"), y_T)
    assert np.corrcoef(band_T, y_T)[0, 1] > 0.8


def test_the_delay_of_a_shifted_signal():
    x_T = speech(5000)
    for shift in (0, 1, 700):
        assert effects.delay(x_T, np.pad(x_T, (shift, 0)), 1000) == shift


def test_unknown_words():
    with pytest.raises(ConfigError, match="gsm, mp3, opus, vorbis"):
        Codec(["amr"])
    with pytest.raises(ConfigError, match="zero, repeat"):
        PacketLoss(fill="noise")


# --- packets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss, burst", [(0.05, 1.0), (0.2, 3.0), (0.5, 4.0)])
def test_as_many_packets_are_lost_and_in_bursts_as_long_as_asked_for(loss, burst):
    lost_BP = PacketLoss((loss, loss), burst).lost(2000, Draws(0, 0, range(200)))
    assert lost_BP.mean() == pytest.approx(loss, rel=0.05)
    starts = (lost_BP[:, 1:] & ~lost_BP[:, :-1]).sum() + lost_BP[:, 0].sum()
    # A burst of one packet on average ends after each, and the next may begin at once.
    assert lost_BP.sum() / starts == pytest.approx(max(burst, 1 / (1 - loss)) if burst == 1 else burst, rel=0.06)


@pytest.mark.parametrize("fill", ["zero", "repeat"])
def test_what_is_heard_in_the_place_of_a_lost_packet(fill):
    effect, draws = PacketLoss((0.4, 0.4), 2.0, fill=fill), Draws(0, 0, range(3))
    x_BT, lengths_B = batched([speech(6500, i) for i in range(3)])
    lost_BP, y_BT = effect.lost(21, draws), effect(x_BT, lengths_B, draws)
    assert lost_BP.any() and not lost_BP.all()
    for row in range(3):
        last_N = torch.zeros(320)
        for p in range(20):
            own_N = x_BT[row, 320 * p : 320 * (p + 1)]
            expected_N = own_N if not lost_BP[row, p] else last_N if fill == "repeat" else torch.zeros(320)
            assert torch.equal(y_BT[row, 320 * p : 320 * (p + 1)], expected_N)
            last_N = last_N if lost_BP[row, p] else own_N


# --- with noise and rooms --------------------------------------------------------------------------------------------


class Adds:
    """Adds a number, so that order can be heard."""

    def __init__(self, value, factor=1.0):
        self.value, self.factor = value, factor

    def __call__(self, x_BT, lengths_B, draws):
        return (x_BT * self.factor + self.value) * (torch.arange(x_BT.shape[1]) < lengths_B[:, None])


def corrupted(chain, n=400):
    x_BT, lengths_B = batched([speech(300 + i) for i in range(n)])
    how = Corruption({}, {}, {"none": 1.0}, [], effects=chain, target="dry")
    return x_BT, how(x_BT, lengths_B, np.full(n, -26.0), [None] * n, Draws(0, 0, range(n)))


def test_effects_come_in_order_each_with_its_probability():
    x_BT, heard = corrupted({"add": (Adds(0.1), 0.5), "half": (Adds(0.0, 0.5), 0.25)})
    shares = [np.mean([name in names for names in heard.effects]) for name in ("add", "half")]
    assert shares == pytest.approx([0.5, 0.25], abs=0.07)
    assert np.mean([names == ["add", "half"] for names in heard.effects]) == pytest.approx(0.125, abs=0.05)
    for x_T, y_T, names in zip(x_BT, heard.waveform_BT, heard.effects, strict=True):
        expected_T = x_T[:300] + 0.1 * ("add" in names)
        assert torch.allclose(y_T[:300], expected_T * (0.5 if "half" in names else 1.0), atol=1e-6)
    assert torch.equal(heard.target_BT, x_BT) and (heard.gain_B == 1).all()


def test_full_scale_holds_after_effects_and_the_target_is_turned_down_alike():
    x_BT, heard = corrupted({"loud": (Adds(0.0, 8.0), 0.5)}, 20)
    assert heard.waveform_BT.abs().max() == pytest.approx(1.0) and (heard.gain_B < 1).any()
    assert torch.allclose(heard.target_BT, x_BT * heard.gain_B[:, None])


def test_two_of_a_kind_have_draws_of_their_own():
    x_BT, heard = corrupted({"a": (Gain((-20, 0)), 1.0), "b": (Gain((-20, 0)), 1.0)})
    gain_db = 20 * torch.log10(heard.waveform_BT.abs().amax(1) / x_BT.abs().amax(1))
    assert gain_db.std() == pytest.approx(20 / 12**0.5 * 2**0.5, rel=0.15)  # twice the same would be larger
