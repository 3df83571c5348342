"""`rkd listen`: clips as a student's training hears them, clean and noisy, to listen to and to look at.

Shapes: T samples at 16 kHz.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rkd.commands.options import Parser, count
from rkd.console import put, say, stdout_to_stderr, warn
from rkd.errors import ConfigError, ResourceError

if TYPE_CHECKING:
    import numpy as np

    from rkd.runs import Step
    from rkd.stages.plan import Plan

_COLUMNS = 4  # clips beside each other on the sheet
_RANGE_DB = 80.0  # from the loudest point of a clip down to black


@dataclass(frozen=True)
class Clip:
    """An utterance before and after its corruption.

    Attributes:
        id, speaker, text: of the utterance.
        operation: none, noise, reverb or both.
        spoken: whether the noise is heard with the speech.
        noise, snr_db: None where no noise was mixed in.
        effects: names of those that followed.
        signals: clean, noisy and, of a model that wears a denoiser, denoised: ``(T,)`` each, with full scale 1.0.
    """

    id: str
    speaker: str | None
    text: str | None
    operation: str
    spoken: bool
    noise: str | None
    snr_db: float | None
    effects: list[str]
    signals: dict[str, np.ndarray]

    @property
    def what(self) -> str:
        """What was done to it, in words."""
        noise = f" {self.noise} {self.snr_db:.4g} dB" if self.noise is not None else ""
        return " ".join([self.operation + ("" if self.spoken else " alone") + noise, *self.effects])

    @property
    def stem(self) -> str:
        """A name for its files."""
        return re.sub(r"[^\w.+-]+", "_", f"{self.id}_{self.what.replace(' dB', 'dB')}")


def parser() -> Parser:
    """Return the options."""
    made = Parser(
        "listen",
        "Write some utterances clean and noisy, with the draws of the first epoch of `rkd distill` with the same\n"
        "overrides: clean.wav and noisy.wav of each, a sheet of spectrograms, and a page to hear them on.\n"
        "Prepares the corpus and the noise if need be. The only line on stdout is the folder.",
        "examples:\n  rkd listen noise=white 'noise.snr=[0]'\n"
        "  rkd listen noise=recorded noise.folder=/data/esc50 --clips 20 --split test\n"
        "  rkd listen --model runs/distill/tiny-1a2b3c4d --split test",
    )
    made.add_argument(
        "overrides", nargs="*", default=[], metavar="OVERRIDE", help="group=choice or key=value, as for rkd distill"
    )
    made.add_argument("--clips", type=count(200), default=8, metavar="N", help="how many, up to 200 (default: 8)")
    made.add_argument("--split", choices=("train", "validation", "test"), default="train", help="default: train")
    made.add_argument("--model", type=Path, metavar="DIR", help="a run that wears a denoiser: denoised.wav too")
    made.add_argument("--out", type=Path, metavar="DIR", help="default: <root>/listen/<corpus>-<split>-<hash>")
    return made


def run(options: argparse.Namespace) -> int:
    """Write the clips and print their folder."""
    from omegaconf import OmegaConf

    from rkd import config

    composed = config.compose("distill", options.overrides)
    for line in config.unread_overrides("distill", options.overrides):
        warn(line)
    from rkd import stages
    from rkd.stages.plan import Existing, Plan

    wearer = Existing(str(options.model)) if options.model else None  # a wrong one is told before anything is built
    with stdout_to_stderr():
        stages.run("prepare", composed, options.overrides)
        tree: Any = OmegaConf.to_container(composed)
        plan = Plan(tree, "distill")
        clips = list(mixed(plan, options.split, options.clips))
        command = ["rkd listen", *options.overrides, "--split", options.split]
        if wearer:
            command += ["--model", str(options.model)]
            clips = denoised(clips, plan, wearer.folder)
        folder = options.out or _folder(plan, options.split, options.clips, wearer)
        try:
            write(folder, clips, " ".join(command))
        except OSError as error:
            raise ResourceError(f"cannot write {folder} ({error}); choose another folder with --out") from error
        say(f"{len(clips)} clips: {folder / 'index.html'}")
    put(folder)
    return 0


def mixed(plan: Plan, split: str, n: int) -> Iterator[Clip]:
    """Yield the first utterances of a split, in the order of their hashes, as the student's training mixes them.

    The draws belong to the utterance, so each sounds the same in whatever batch it is; they are those of epoch 0.
    """
    import numpy as np
    import torch

    from rkd import assemble
    from rkd.data.batches import Batches
    from rkd.data.store import Store

    cfg, noise = plan.cfg, plan.cfg["noise"]
    store = Store.open(plan.speech.folder, split)
    banks, rooms = plan.bank_folders(noise["types"]), plan.room_folder(noise["rooms"], noise)
    corrupt = assemble.corruption(noise, store, split, banks, rooms, torch.device("cpu"), cfg["trust"])
    training = {"weights": cfg["data"]["weights"], "only": noise["only"]} if split == "train" else {}
    batches = Batches(store, None, cfg["trainer"]["batch_seconds"], cfg["seed"], **training)
    entries = batches.entries(0)
    once = entries[entries < len(store)]  # what the first epoch hears, the first time that it does
    for entry in once[np.argsort(batches.ids64[once])][:n]:
        batch = batches.collate(0, np.array([entry]))
        heard = corrupt(
            batch.clean_BT, batch.speech_lengths_B, batch.levels_db, batch.speakers, batch.draws, batch.spoken_B
        )
        name = heard.noise[0]
        yield Clip(
            batch.ids[0],
            batch.speakers[0],
            batch.texts[0],
            heard.operation[0],
            bool(batch.spoken_B[0]),
            name,
            None if name is None else float(heard.snr_db[0]),
            heard.effects[0],
            {"clean": batch.clean_BT[0].numpy(), "noisy": heard.waveform_BT[0].numpy()},
        )


def denoised(clips: Sequence[Clip], plan: Plan, folder: Path) -> list[Clip]:
    """Return clips with what a model's denoiser makes of the noisy ones.

    Raises:
        ConfigError: the model wears none.
    """
    import torch

    from rkd import assemble
    from rkd.models.enhanced import Enhanced

    model = assemble.saved_model(folder, plan.cfg).eval()
    if not isinstance(model, Enhanced):
        raise ConfigError(
            f"--model {folder}: it wears no denoiser; name a run that was trained with denoiser=mask or so"
        )
    found = []
    for clip in clips:
        noisy_BT = torch.from_numpy(clip.signals["noisy"])[None]
        with torch.no_grad():
            denoised_T = model.denoiser(noisy_BT, torch.tensor([noisy_BT.shape[1]]))[0].numpy()
        found.append(replace(clip, signals={**clip.signals, "denoised": denoised_T}))
    return found


def _folder(plan: Plan, split: str, n: int, wearer: Step | None) -> Path:
    from rkd.config import fingerprint

    noise = plan.cfg["noise"]
    steps = [step.hash for step in [plan.speech, *plan.noise(noise)]]
    made_of = fingerprint([steps, noise, plan.cfg["seed"], n, *([wearer.hash] if wearer else [])])
    return plan.root / "listen" / f"{plan.speech.name}-{split}-{made_of[:8]}"


def write(folder: Path, clips: Sequence[Clip], command: str) -> None:
    """Write a folder for each clip, the sheet of spectrograms and the page."""
    import jinja2
    import soundfile

    from rkd.audio import RATE_HZ, to_pcm16

    names = []
    for number, clip in enumerate(clips, 1):
        names.append(f"{number:0{len(str(len(clips)))}d}_{clip.stem}"[:200])
        (folder / names[-1]).mkdir(parents=True, exist_ok=True)
        for kind, x_T in clip.signals.items():
            soundfile.write(folder / names[-1] / f"{kind}.wav", to_pcm16(x_T), RATE_HZ, subtype="PCM_16")
    draw_sheet(clips, folder / "spectrograms.png")
    loader = jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates")
    template = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template(
        "listen.html.j2"
    )
    kinds = list(clips[0].signals) if clips else []
    page = template.render(command=command, kinds=kinds, clips=list(zip(names, clips, strict=True)))
    (folder / "index.html").write_text(page, encoding="utf-8")


def draw_sheet(clips: Sequence[Clip], path: Path) -> None:
    """Draw the spectrograms, each clip's clean speech above what is heard and made of it, on one scale in dB."""
    from matplotlib.figure import Figure

    n_rows, n_signals = math.ceil(len(clips) / _COLUMNS), len(clips[0].signals)
    columns = min(len(clips), _COLUMNS)
    figure = Figure(figsize=(4.0 * columns, 2.2 * n_signals * n_rows), layout="constrained", dpi=80)
    axes = figure.subplots(n_signals * n_rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for number, clip in enumerate(clips):
        row, column = n_signals * (number // _COLUMNS), number % _COLUMNS
        rows = slice(row, row + n_signals)
        levels = [_spectrogram_db(x_T) for x_T in clip.signals.values()]
        top_db = max(level_FT.max() for level_FT in levels)
        titles = [clip.id, clip.what, "denoised"][:n_signals]
        for ax, level_FT, title in zip(axes[rows, column], levels, titles, strict=True):
            seconds = len(clip.signals["clean"]) / 16000
            ax.imshow(
                level_FT, origin="lower", aspect="auto", extent=(0, seconds, 0, 8), cmap="magma",
                vmin=top_db - _RANGE_DB, vmax=top_db,
            )  # fmt: skip
            ax.set_axis_on()
            ax.set_title(title[-40:], fontsize=9)
            ax.tick_params(labelsize=7)
        axes[row + n_signals - 1, column].set_xlabel("s", fontsize=8)
        for ax in axes[rows, 0]:
            ax.set_ylabel("kHz", fontsize=8)
    figure.savefig(path)


def _spectrogram_db(x_T: np.ndarray) -> np.ndarray:
    """Return power in dB by frequency and time (25 ms windows, 10 ms apart)."""
    import numpy as np
    from scipy.signal import spectrogram

    n = min(400, len(x_T))
    power_FT = spectrogram(x_T, 16000, nperseg=n, noverlap=max(0, n - 160), mode="psd")[2]
    return 10 * np.log10(np.maximum(power_FT, 1e-16))
