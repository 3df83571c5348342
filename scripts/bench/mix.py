"""Hours of audio a second through noise, rooms and log-mel features: rkd's batches beside other ways to do the same.

    python scripts/bench/mix.py --threads 1
    python scripts/bench/mix.py --device cuda --speech /data/ljspeech --noise /data/esc50 --rooms /data/rir

Prints a table in Markdown; on what it was measured goes to stderr. Without folders the recordings are synthetic. All
ways get the same batches of clips of one length in main memory, and leave mixtures and features on the device. They
take turns, after one turn that does not count. Files come from the system's cache. Before anything is timed, each way
has to show that it mixes at the SNR asked for and that its rooms change the speech, and the loops that for the same
draws they make rkd's mixtures.

Beside rkd and two loops over utterances stand libraries, each used as it documents, where it is installed:

    pip install torch-audiomentations audiomentations speechbrain

Theirs is not quite the same work: SpeechBrain takes one room for the whole batch, audiomentations does not align rooms
to the direct path. torch-audiomentations 0.12 cannot read files by torchaudio 2.9 or later, so it gets them read.

Shapes: N batches, B clips, T samples, L samples of a room response, C channels.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from mixers import WAYS, Mix, Range, Sounds, Way, loop_from_disk, loop_in_memory, read, rkd_batches
from torch import Tensor

from rkd.audio import RATE_HZ
from rkd.data.banks import trim_silence
from rkd.data.sources import audio_files
from rkd.draws import Draws
from rkd.features import LogMel

SNR_DB = (0.0, 20.0)
BATCHES = 4  # of speech, in turn
FILES_HZ = 44100  # of synthetic files, as in ESC-50, UrbanSound8K and FSD50K
MAX_FILES = 500  # of a folder, taken evenly from all of it
MIXTURES = {"noise": False, "room, then noise": True}  # whether there is a room


# ---- whether they do it, and how fast ----


def check(sounds: Sounds, name: str, way: Way) -> None:
    """Raise SystemExit where a way does not do what is to be timed."""
    clean_BT = torch.from_numpy(sounds.speech_NBT[0])

    def mixed(way: Way, in_room: bool, snr_db: Range) -> Tensor:
        mixed_BT = way(sounds, in_room, snr_db)(clean_BT, Draws(0, 0, range(len(clean_BT)))).cpu()
        if mixed_BT.shape != clean_BT.shape or not mixed_BT.isfinite().all():
            raise SystemExit(f"{name}: {tuple(clean_BT.shape)} became {tuple(mixed_BT.shape)}, or is not finite")
        return mixed_BT

    off_db = (snr_of(mixed(way, False, (10.0, 10.0)), clean_BT) - 10).abs().max()
    if not off_db <= 0.5:  # or not a number
        raise SystemExit(f"{name}: SNRs are up to {off_db:.1f} dB from the one asked for")
    # With next to no noise, what is not the clean speech is the room's.
    if not snr_of(mixed(way, True, (100.0, 100.0)), clean_BT).max() <= 30:
        raise SystemExit(f"{name}: a room leaves speech as it was")
    if way in (loop_from_disk, loop_in_memory):
        for mixture, in_room in MIXTURES.items():
            expected_BT = mixed(rkd_batches, in_room, SNR_DB)
            error = (mixed(way, in_room, SNR_DB) - expected_BT).norm() / expected_BT.norm()
            if not error <= 0.01:
                raise SystemExit(f"{name}: for the same draws {mixture} is {error:.0%} from rkd's")


def snr_of(mixed_BT: Tensor, clean_BT: Tensor) -> Tensor:
    """Return the SNR of each mixture, in which the clean clip has any gain, in dB; shape ``(B,)``."""
    mixed_BT, clean_BT = mixed_BT.double(), clean_BT.double()
    speech_BT = clean_BT * ((mixed_BT * clean_BT).sum(1) / (clean_BT**2).sum(1))[:, None]
    return 20 * (speech_BT.norm(dim=1) / (mixed_BT - speech_BT).norm(dim=1)).log10()


def measure(sounds: Sounds, mixes: dict[tuple[str, str], Mix], repetitions: int) -> dict[tuple[str, str], np.ndarray]:
    """Return seconds for mixtures and for features by mixture and way, each of shape ``(repetitions, 2)``."""
    mel = LogMel(n_mels=80, hop=160).to(sounds.device)
    seconds: dict[tuple[str, str], list[Range]] = {key: [] for key in mixes}
    for repetition in range(repetitions + 1):  # the first is to warm up
        clean_BT = torch.from_numpy(sounds.speech_NBT[repetition % BATCHES])
        lengths_B = torch.full((len(clean_BT),), clean_BT.shape[1], device=sounds.device)
        draws = Draws(0, repetition, range(len(clean_BT)))
        for key, mix in mixes.items():
            started = now(sounds.device)
            mixed_BT = mix(clean_BT, draws)
            between = now(sounds.device)
            mel(mixed_BT, lengths_B)
            seconds[key].append((between - started, now(sounds.device) - between))
    return {key: np.array(rows[1:]) for key, rows in seconds.items()}


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


# ---- what is mixed ----


def prepare(folders: dict[str, Path | None], batch: int, seconds: float, device: torch.device, scratch: Path) -> Sounds:
    """Return what is mixed, of folders named ``speech``, ``noise`` and ``rooms``; synthetic where there is none."""
    write_synthetic(scratch / "synthetic", seconds)
    files = {}
    for kind, folder in folders.items():
        found = list(audio_files(folder or scratch / "synthetic" / kind, kind, f"--{kind}"))
        files[kind] = found[:: -(-len(found) // MAX_FILES)]
    # One recording after the other, cut into clips of one length: not all libraries know of padding.
    shape = (BATCHES, batch, int(seconds * RATE_HZ))
    pieces: list[np.ndarray] = []
    while files["speech"] and sum(map(len, pieces)) < np.prod(shape):
        pieces.append(read(files["speech"].pop()))
    speech_NBT = np.resize(np.concatenate(pieces), shape)
    noise_files = copy(files["noise"], scratch / "noise", seconds + 1)
    return Sounds(speech_NBT, noise_files, copy(files["rooms"], scratch / "rooms"), device)


def write_synthetic(folder: Path, seconds: float) -> None:
    """Write speech-like clips, coloured noise and decaying responses, as files of the rate of most noise sets."""
    rng = np.random.default_rng(0)
    t_T = np.arange(int((seconds + 2) * FILES_HZ)) / FILES_HZ
    for kind in ("speech", "noise", "rooms"):
        (folder / kind).mkdir(parents=True)
    for i in range(40):
        speech_T = rng.standard_normal(len(t_T)) * np.sin(np.pi * (2 + i % 3) * t_T) ** 2
        noise_T = np.convolve(rng.standard_normal(len(t_T)), np.ones(8), "same")
        response_L = 0.1 * rng.standard_normal(FILES_HZ) * np.exp(-np.arange(FILES_HZ) / FILES_HZ * (8 + i % 10))
        response_L[:41] = [0.0] * 40 + [1.0]  # the way to the microphone
        for kind, x_T in (("speech", speech_T), ("noise", noise_T), ("rooms", response_L)):
            soundfile.write(folder / kind / f"{i}.wav", 0.9 * x_T / np.abs(x_T).max(), FILES_HZ)


def copy(files: list[Path], out: Path, noise_seconds: float | None = None) -> list[Path]:
    """Write recordings as all libraries can read them: mono WAV at the rate of the first.

    Noise loses its silent stretches, where there is no SNR, and is repeated up to ``noise_seconds``: each way would do
    that in its own manner.
    """
    out.mkdir()
    rate_hz = soundfile.info(files[0]).samplerate
    copies: list[Path] = []
    for path in files:
        x_TC, own_hz = soundfile.read(path, dtype="float32", always_2d=True)
        x_T = torchaudio.functional.resample(torch.from_numpy(x_TC[:, 0]), own_hz, rate_hz).numpy()
        if noise_seconds is not None:
            x_T = trim_silence(x_T)
            x_T = np.resize(x_T, max(len(x_T), int(noise_seconds * rate_hz)) if len(x_T) else 0)
        if len(x_T):
            copies.append(out / f"{len(copies)}.wav")
            soundfile.write(copies[-1], x_T, rate_hz, "FLOAT")
    return copies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind in ("speech", "noise", "rooms"):
        parser.add_argument(f"--{kind}", type=Path, help="folder of recordings (default: synthetic)")
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--threads", type=int, help="of torch (default: as many as it takes)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--repetitions", type=int, default=20)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    random.seed(0)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        folders = {"speech": args.speech, "noise": args.noise, "rooms": args.rooms}
        sounds = prepare(folders, args.batch, args.seconds, args.device, Path(scratch))
        where = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else "CPU"
        print(
            f"{where}, torch {torch.__version__}, {torch.get_num_threads()} threads; {args.repetitions} batches of "
            f"{args.batch} x {args.seconds:g} s; {len(sounds.noise)} noises, {len(sounds.rooms)} rooms",
            file=sys.stderr,
        )
        mixes: dict[tuple[str, str], Mix] = {}
        for name, way in WAYS.items():
            try:
                check(sounds, name, way)
            except ImportError as error:
                print(f"{name}: {error}; pip install {name.lower()}", file=sys.stderr)
                continue
            mixes |= {(mixture, name): way(sounds, in_room, SNR_DB) for mixture, in_room in MIXTURES.items()}
        print_table(measure(sounds, mixes, args.repetitions), args.batch * args.seconds / 3600)


def print_table(seconds: dict[tuple[str, str], np.ndarray], hours: float) -> None:
    print("| mixture | way | hours/s, median | quartiles | features take | speed, rkd = 1 |\n|---|---|---|---|---|---|")
    for mixture in MIXTURES:
        for name in WAYS:
            if (mixture, name) not in seconds:
                print(f"| {mixture} | {name} | not installed | | | |")
                continue
            both = seconds[mixture, name].sum(axis=1)
            low, median, high = np.percentile(hours / both, [25, 50, 75])
            share = np.median(seconds[mixture, name][:, 1] / both)
            of_rkd = median / np.median(hours / seconds[mixture, "rkd"].sum(axis=1))
            print(f"| {mixture} | {name} | {median:.3g} | {low:.3g} to {high:.3g} | {share:.0%} | {of_rkd:.2f} |")


if __name__ == "__main__":
    main()
