"""What a recording goes through after the room: the microphone, the channel, the coder. The student's input alone.

An effect is a class with ``__call__``; a YAML file under ``conf/effects`` names it. To add one, write the class and the
YAML: nothing else changes. What all of them keep: the time at which things are heard (delays are compensated), silence
beyond a clip's end, and that a clip comes out the same whatever it is batched with.

Shapes: B batch, T samples, L taps of a filter, P packets, K frequencies, F frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rkd.audio import RATE_HZ
from rkd.draws import Draws
from rkd.errors import ConfigError
from rkd.masks import valid_mask
from rkd.noise import convolve

Range = Sequence[float]  # the lowest and the highest value, between which a clip's own is drawn evenly


def drawn(draws: Draws, purpose: str, ends: Range) -> np.ndarray:
    """Return a value of the range for each clip; shape ``(B,)``."""
    low, high = ends
    return low + (high - low) * draws.uniform(purpose)


def like(values_B: np.ndarray, x: Tensor) -> Tensor:
    """Return numbers as a tensor of another's type and device."""
    return torch.from_numpy(values_B).to(x)


class SpecAugment:
    """Masks in frequency and in time (Park et al. 2019), of the waveform instead of one model's features.

    The short-time Fourier transform is zeroed in the masks and transformed back by overlap and add, so that a model of
    any family hears it, whatever its features. There a zero is the mean of the log-mel features, here it is silence.
    Widths in frequency are those on the mel scale, as there.

    Args:
        frequency_masks: how many bands are masked.
        frequency_share: widest band, as a share of the mel scale up to 8 kHz; the paper's F=27 of 80 is 0.34.
        time_masks: how many stretches are masked.
        time_seconds: longest stretch; the paper's T=100 is 1 s.
        time_share: longest stretch as a share of the clip; the paper's p.
    """

    n_fft, hop = 512, 128

    def __init__(
        self,
        frequency_masks: int = 2,
        frequency_share: float = 0.34,
        time_masks: int = 2,
        time_seconds: float = 1.0,
        time_share: float = 0.2,
    ):
        self.frequency_masks, self.frequency_share = frequency_masks, frequency_share
        self.time_masks, self.time_seconds, self.time_share = time_masks, time_seconds, time_share

    def __call__(self, x_BT: Tensor, lengths_B: Tensor, draws: Draws) -> Tensor:
        n = x_BT.shape[1]
        window = torch.hann_window(self.n_fft, dtype=x_BT.dtype, device=x_BT.device)
        # With a frame of silence after it, so that a clip's last frames are the same with other clips beside it.
        padded_BT = torch.nn.functional.pad(x_BT, (0, self.n_fft))
        spectrum_BKF = torch.stft(padded_BT, self.n_fft, self.hop, window=window, pad_mode="constant",
                                  return_complex=True)  # fmt: skip
        kept_BKF = ~self.masks(lengths_B, spectrum_BKF.shape[1], spectrum_BKF.shape[2], draws)
        masked_BT = torch.istft(spectrum_BKF * kept_BKF, self.n_fft, self.hop, window=window, length=n)
        return masked_BT * valid_mask(lengths_B, n)

    def masks(self, lengths_B: Tensor, n_bins: int, n_frames: int, draws: Draws) -> Tensor:
        """Return True where a frame of a frequency is masked; shape ``(B, K, F)``."""
        mel_K = torch.log1p(torch.linspace(0, RATE_HZ / 2, n_bins, dtype=torch.float64, device=lengths_B.device) / 700)
        place_K = mel_K / mel_K[-1]
        second_F = torch.arange(n_frames, dtype=torch.float64, device=lengths_B.device) * self.hop / RATE_HZ
        seconds_B = lengths_B / RATE_HZ
        masked_BKF = torch.zeros(len(lengths_B), n_bins, n_frames, dtype=torch.bool, device=lengths_B.device)
        for i in range(self.frequency_masks):
            width_B, start_B = self._draws(f"specaugment.frequency.{i}", draws, place_K)
            width_B = self.frequency_share * width_B
            masked_BKF |= _between(place_K, start_B * (1 - width_B), width_B)[:, :, None]
        for i in range(self.time_masks):
            width_B, start_B = self._draws(f"specaugment.time.{i}", draws, place_K)
            width_B = width_B * (self.time_share * seconds_B).clamp(max=self.time_seconds)
            masked_BKF |= _between(second_F, start_B * (seconds_B - width_B), width_B)[:, None, :]
        return masked_BKF

    @staticmethod
    def _draws(purpose: str, draws: Draws, x: Tensor) -> list[Tensor]:
        return [like(draws.uniform(f"{purpose}.{what}"), x) for what in ("width", "start")]


def _between(place_N: Tensor, start_B: Tensor, width_B: Tensor) -> Tensor:
    """Return True for the places from a start to a width beyond it; shape ``(B, N)``."""
    return (place_N >= start_B[:, None]) & (place_N < (start_B + width_B)[:, None])


class Gain:
    """Another level; what goes beyond full scale is turned down again.

    Args:
        gain_db: lowest and highest change.
    """

    def __init__(self, gain_db: Range = (-20.0, 10.0)):
        self.gain_db = gain_db

    def __call__(self, x_BT: Tensor, lengths_B: Tensor, draws: Draws) -> Tensor:
        return x_BT * like(10 ** (drawn(draws, "gain", self.gain_db) / 20), x_BT)[:, None]


class Clipping:
    """Hard clipping: what is beyond a threshold is held there.

    Args:
        level_db: of the threshold against the clip's peak, lowest and highest ...
        share: ... or share of the samples that are clipped, lowest and highest.

    Raises:
        ConfigError: neither or both are given.
    """

    def __init__(self, level_db: Range | None = None, share: Range | None = None):
        if (level_db is None) == (share is None):
            raise ConfigError("Clipping: give either level_db or share")
        self.level_db, self.share = level_db, share

    def __call__(self, x_BT: Tensor, lengths_B: Tensor, draws: Draws) -> Tensor:
        if self.level_db is not None:
            peak_B1 = x_BT.abs().amax(1, keepdim=True)
            threshold_B1 = peak_B1 * like(10 ** (drawn(draws, "clipping", self.level_db) / 20), x_BT)[:, None]
        else:
            assert self.share is not None
            share_B = torch.from_numpy(drawn(draws, "clipping", self.share)).to(lengths_B.device)
            # As many samples lie above the next largest; beyond a clip's end there are zeros, the smallest.
            above_B = torch.minimum((share_B * lengths_B).long(), lengths_B - 1)
            threshold_B1 = x_BT.abs().sort(1, descending=True).values.gather(1, above_B[:, None])
        return torch.maximum(torch.minimum(x_BT, threshold_B1), -threshold_B1)


class Band:
    """Limits of frequency: linear-phase windowed-sinc filters (Hamming, 32 ms), their delay compensated.

    A cut is 6 dB down at its frequency, and 50 dB from about 50 Hz beyond.

    Args:
        low_hz: lowest and highest frequency below which nothing passes; None: no such limit.
        high_hz: lowest and highest frequency above which nothing passes; None: no such limit.
    """

    taps = 513

    def __init__(self, low_hz: Range | None = None, high_hz: Range | None = None):
        self.low_hz, self.high_hz = low_hz, high_hz

    def __call__(self, x_BT: Tensor, lengths_B: Tensor, draws: Draws) -> Tensor:
        response_BL = torch.zeros(len(x_BT), self.taps, dtype=torch.float64)
        response_BL[:, self.taps // 2] = 1.0
        if self.high_hz is not None:
            response_BL = torch.from_numpy(low_pass(drawn(draws, "band.high", self.high_hz), self.taps))
        if self.low_hz is not None:
            response_BL = response_BL - torch.from_numpy(low_pass(drawn(draws, "band.low", self.low_hz), self.taps))
        return filtered(x_BT, response_BL.to(x_BT)) * valid_mask(lengths_B, x_BT.shape[1])


def low_pass(cutoff_hz_B: np.ndarray, taps: int) -> np.ndarray:
    """Return the taps ``(B, L)``, an odd number, of windowed-sinc low-pass filters with a gain of 1 at 0 Hz."""
    n_L = np.arange(taps) - taps // 2
    ratio_B1 = 2 * cutoff_hz_B[:, None] / RATE_HZ
    response_BL = ratio_B1 * np.sinc(ratio_B1 * n_L) * np.hamming(taps)
    return response_BL / response_BL.sum(1, keepdims=True)


def filtered(x_BT: Tensor, response_BL: Tensor) -> Tensor:
    """Return clips after symmetric filters of an odd number of taps, in time with the clips."""
    delay = response_BL.shape[1] // 2
    return convolve(torch.nn.functional.pad(x_BT, (0, delay)), response_BL)[:, delay:]


class MuLaw:
    """A telephone's coding: 8 kHz and 8 bits a sample, ITU-T G.711 mu-law, and back to 16 kHz."""

    taps = 255
    cutoff_hz = 3700.0  # half of the filter's transition below 4 kHz

    def __call__(self, x_BT: Tensor, lengths_B: Tensor, draws: Draws) -> Tensor:
        response_1L = torch.from_numpy(low_pass(np.array([self.cutoff_hz]), self.taps)).to(x_BT)
        valid_BT = valid_mask(lengths_B, x_BT.shape[1])
        coded_BT = torch.zeros_like(x_BT)
        # What rings on beyond a clip's end is not sent.
        coded_BT[:, ::2] = g711(filtered(x_BT, response_1L)[:, ::2]) * valid_BT[:, ::2]
        # Every other sample is zero: twice the gain makes up for it.
        return filtered(coded_BT, 2 * response_1L) * valid_BT


def g711(x_BT: Tensor) -> Tensor:
    """Return samples after mu-law coding with 8 bits and decoding (ITU-T G.711, table 2a), full scale 1.0.

    The magnitude in 14 bits with the bias 33 has a segment, its power of two, and 16 steps in it.
    """
    biased_BT = (x_BT.abs() * 8192).floor().clamp(max=8158) + 33
    step_BT = 2.0 ** ((biased_BT).log2().floor() - 4)
    decoded_BT = ((biased_BT / step_BT).floor() + 0.5) * step_BT - 33
    return x_BT.sign() * decoded_BT / 8192


class PacketLoss:
    """Packets that do not arrive, in bursts: a two-state Markov chain (Gilbert 1960).

    Args:
        loss: lowest and highest share of packets that are lost.
        burst: packets lost in a row, on average, 1 or more.
        packet_seconds: of a packet.
        fill: ``zero``: silence is heard instead; ``repeat``: the last packet that arrived is heard again.

    Raises:
        ConfigError: an unknown fill.
    """

    def __init__(self, loss: Range = (0.02, 0.2), burst: float = 2.0, packet_seconds: float = 0.02, fill: str = "zero"):
        if fill not in ("zero", "repeat"):
            raise ConfigError(f"fill={fill}: expected zero, repeat")
        self.loss, self.burst, self.fill = loss, burst, fill
        self.size = round(packet_seconds * RATE_HZ)

    def __call__(self, x_BT: Tensor, lengths_B: Tensor, draws: Draws) -> Tensor:
        n_packets = -(-x_BT.shape[1] // self.size)
        heard_BP = torch.from_numpy(self.heard(n_packets, draws)).to(x_BT.device)
        padded_BT = torch.nn.functional.pad(x_BT, (0, n_packets * self.size - x_BT.shape[1]))
        packets_BPN = padded_BT.view(len(x_BT), n_packets, self.size)
        rows_B1 = torch.arange(len(x_BT), device=x_BT.device)[:, None]
        packets_BPN = packets_BPN[rows_B1, heard_BP.clamp(min=0)] * (heard_BP >= 0)[:, :, None]
        return packets_BPN.flatten(1)[:, : x_BT.shape[1]] * valid_mask(lengths_B, x_BT.shape[1])

    def heard(self, n_packets: int, draws: Draws) -> np.ndarray:
        """Return which packet is heard in the place of each, ``(B, P)``; -1 for silence."""
        lost_BP = self.lost(n_packets, draws)
        packet_BP = np.where(lost_BP, -1, np.arange(n_packets))
        return np.maximum.accumulate(packet_BP, axis=1) if self.fill == "repeat" else packet_BP

    def lost(self, n_packets: int, draws: Draws) -> np.ndarray:
        """Return True for the packets that are lost; shape ``(B, P)``."""
        share_B = drawn(draws, "packets.loss", self.loss)
        leave = 1 / self.burst  # from lost to received, at each packet
        enter_B = np.minimum(leave * share_B / np.maximum(1 - share_B, 1e-9), 1.0)
        chance_BP = draws.uniforms("packets", n_packets)
        state_B = draws.uniform("packets.first") < share_B
        lost_BP = np.zeros(chance_BP.shape, dtype=bool)
        for p in range(n_packets):
            state_B = np.where(state_B, chance_BP[:, p] >= leave, chance_BP[:, p] < enter_B)
            lost_BP[:, p] = state_B
        return lost_BP


# Container and coding, as libsndfile names them.
CODECS = {
    "gsm": ("WAV", "GSM610"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "opus": ("OGG", "OPUS"),
    "vorbis": ("OGG", "VORBIS"),
}
_LONGEST_DELAY = RATE_HZ // 5  # of a codec, in samples


class Codec:
    """A low-bit-rate codec of libsndfile, its delay measured and compensated.

    It runs on the CPU, clip by clip: 6 to 10 ms for a second of speech, opus 40.

    Args:
        formats: of which one is drawn for a clip: ``gsm`` (GSM 06.10 full rate, 8 kHz, 13 kbit/s), ``mp3``, ``opus``,
            ``vorbis``.
        compression: of those but gsm, lowest and highest, from 0 (best) to 1 (smallest).

    Raises:
        ConfigError: an unknown format.
    """

    def __init__(self, formats: Sequence[str] = ("gsm", "mp3", "opus", "vorbis"), compression: Range = (0.5, 1.0)):
        if unknown := [name for name in formats if name not in CODECS]:
            raise ConfigError(f"formats names {unknown[0]}: expected {', '.join(CODECS)}")
        self.formats, self.compression = formats, compression

    def __call__(self, x_BT: Tensor, lengths_B: Tensor, draws: Draws) -> Tensor:
        coded_BT = torch.zeros_like(x_BT)
        chosen_B = draws.below("codec.format", len(self.formats))
        compression_B = drawn(draws, "codec.compression", self.compression)
        for row, length in enumerate(lengths_B.tolist()):
            x_T = x_BT[row, :length].cpu().numpy()
            coded_T = coded(x_T, self.formats[chosen_B[row]], float(compression_B[row]))
            coded_BT[row, :length] = torch.from_numpy(coded_T).to(x_BT)
        return coded_BT


def coded(x_T: np.ndarray, kind: str, compression: float) -> np.ndarray:
    """Return a waveform ``(T,)`` after coding and decoding, in time with what went in."""
    import io

    import soundfile
    from scipy.signal import resample_poly

    container, subtype = CODECS[kind]
    telephone = kind == "gsm"
    # Room for the delay at the end, and for a coder's blocks.
    padded_T = np.pad(x_T.astype(np.float32), (0, _LONGEST_DELAY))
    if telephone:
        padded_T = resample_poly(padded_T, 1, 2)
    file = io.BytesIO()
    settings = {} if telephone else {"compression_level": compression}
    rate_hz = RATE_HZ // 2 if telephone else RATE_HZ
    soundfile.write(file, padded_T.clip(-1, 1), rate_hz, subtype, format=container, **settings)
    file.seek(0)
    y_T, rate_hz = soundfile.read(file, dtype="float32")
    if telephone:
        y_T = resample_poly(y_T, 2, 1)
    y_T = y_T[delay(x_T, y_T, _LONGEST_DELAY) :][: len(x_T)]
    return np.pad(y_T, (0, len(x_T) - len(y_T))).astype(np.float32)


def delay(x_T: np.ndarray, y_T: np.ndarray, longest: int) -> int:
    """Return by how many samples one waveform is heard after another: where their correlation is highest."""
    from scipy.fft import irfft, next_fast_len, rfft

    n = next_fast_len(len(x_T) + max(len(y_T), longest), real=True)
    return int(irfft(rfft(y_T, n) * rfft(x_T, n).conj(), n)[: longest + 1].argmax())
