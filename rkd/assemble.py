"""Configuration becomes objects: models, loss terms, noise, batches.

The stages call this; nothing below sees a configuration.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rkd.audio import RATE_HZ
from rkd.config import NOT_ARGUMENTS, described, families, instantiate, is_trusted, load_class
from rkd.config.teaching import against_itself, asks_teacher, is_on, is_trained
from rkd.console import say, warn
from rkd.data.banks import Recordings, Room, load_noise, load_rooms
from rkd.data.batches import Batch, Batches
from rkd.data.store import Store
from rkd.draws import unit_hash
from rkd.errors import ConfigError, DataError
from rkd.losses import ITSELF, Schedule, Term
from rkd.models import load_model, recogniser_folder
from rkd.models.enhanced import Enhanced, bare, take_denoiser
from rkd.noise import Corruption, NoiseType, Resources

SPEAKERS_HEARD = 100  # of whom babble is made: their speech lies in memory, and a corpus may have 100,000


def arguments(node: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return a node without the keys that rkd itself reads: its class and what that class's constructor takes."""
    return {key: value for key, value in node.items() if key not in NOT_ARGUMENTS[kind]}


def longest_seconds(speech: Path, splits: Sequence[str] = ("train", "validation", "test")) -> float:
    """Return the length of a corpus's longest utterance."""
    return max(int(Store.open(speech, split).n_samples.max()) for split in splits) / RATE_HZ


def window_seconds(speech: Path) -> int:
    """Return the window of models made for a corpus: its longest utterance, rounded up to a multiple of 4 s.

    The window must hold a whole number of encoder steps; 4 s do so at every usual hop.
    """
    return 4 * math.ceil(longest_seconds(speech) / 4)


def check_window(speech: Path, model: Any) -> None:
    """Refuse a corpus with utterances longer than a model hears.

    Raises:
        DataError: with what to set.
    """
    if longest_seconds(speech) > model.window_seconds:
        raise DataError(
            f"the corpus has utterances longer than the {model.window_seconds} s that the {type(model).__name__} model "
            f"hears; set data.max_seconds={model.window_seconds}, or take a model with a longer window"
        )


def check_language(speech: Path, model: Any, role: str) -> None:
    """Refuse to ask a model for another language than the corpus is in, as far as both are known.

    Raises:
        DataError: with what to set.
    """
    if (asked := model.shape.get("language")) is None:
        return
    from rkd.models.hub_whisper import language_code

    tags = {tag for split in ("train", "validation", "test") for tag in Store.open(speech, split).languages if tag}
    spoken = sorted({code for tag in tags if (code := language_code(tag))})
    if spoken and asked not in spoken:
        raise DataError(f"the corpus is in {', '.join(spoken)}, and the {role} is asked for {asked}; set "
                        f"{role}.language={spoken[0]}")  # fmt: skip
    if len(spoken) > 1:
        warn(f"the corpus is in {', '.join(spoken)}, and the {role} is asked for {asked} in all of it")


def with_denoiser(recogniser: Any, node: Mapping[str, Any], trust: Sequence[str]) -> Any:
    """Return a recogniser that wears the denoiser of a ``denoiser`` configuration, if that names one."""
    if node["_target_"] is None:
        return recogniser
    return Enhanced(recogniser, instantiate(arguments(node, "denoiser"), trust), node["mixing"])


def new_model(
    node: Mapping[str, Any], denoiser: Mapping[str, Any], tokenizer: Any, window: int, trust: Sequence[str]
) -> Any:
    """Return a model of a student's or teacher's shape with fresh weights, and the denoiser that it wears."""
    recogniser = instantiate(arguments(node, "model"), trust, tokenizer=tokenizer, window_seconds=window)
    return with_denoiser(recogniser, denoiser, trust)


def hub_model(
    node: Mapping[str, Any],
    denoiser: Mapping[str, Any],
    folder: Path,
    weights: bool,
    texts: Iterable[str] | None,
    kind: str,
    trust: Sequence[str],
) -> Any:
    """Return a model in Transformers' form, and the denoiser that it wears, which is new.

    Args:
        folder: the pretrained model, or a run that ended in one.
        weights: whether its weights are loaded, or the shape alone is taken.
        texts: for a vocabulary of the corpus's own, its training texts; None for the folder's vocabulary.
        kind: of the tokenizer to make.
    """
    tokenizer = load_class(node["_target_"], trust).new_tokenizer(texts, kind) if texts is not None else None
    recogniser = instantiate(
        arguments(node, "model"), trust, source=recogniser_folder(folder), weights=weights, tokenizer=tokenizer
    )
    return with_denoiser(recogniser, denoiser, trust)


def continued_model(node: Mapping[str, Any], denoiser: Mapping[str, Any], cfg: Mapping[str, Any]) -> Any:
    """Return a model of a student's or teacher's shape with the weights and the vocabulary of an earlier run.

    A denoiser goes on from the run's; where the run wore none it is new.

    Raises:
        ConfigError: the run's model has another shape, or another denoiser.
    """
    folder, trust, none = Path(node["init_from"]), cfg["trust"], {"_target_": None}
    run = saved_model(folder, cfg)
    if type(bare(run)) is not load_class(node["_target_"], trust):
        raise ConfigError(f"init_from={folder} holds a {type(bare(run)).__name__}, not a {node['family']} model")
    if "source" in node:
        say(f"weights, shape and vocabulary are those of {folder}, whatever {node['name']} is")
        recogniser = hub_model(node, none, folder, True, None, "", trust)
    else:
        for key, value in arguments(node, "model").items():
            if key not in ("_target_", "dropout") and run.shape.get(key) != value:
                raise ConfigError(
                    f"init_from={folder} has {key}={run.shape.get(key)}, not {value}: choose its own shape"
                )
        recogniser = new_model(node, none, run.tokenizer, run.window_seconds, trust)
        recogniser.load_state_dict(bare(run).state_dict())
    model = with_denoiser(recogniser, denoiser, trust)
    if isinstance(run, Enhanced) and not (isinstance(model, Enhanced) and take_denoiser(model, run)):
        shape = ", ".join(f"{key} {value}" for key, value in run.denoiser.shape.items())
        raise ConfigError(f"init_from={folder} wears the denoiser {run.denoiser.family} ({shape}): choose the same one")
    return model


def teacher_model(folder: Path, cfg: Mapping[str, Any]) -> Any:
    """Return the teacher: of a run, or a pretrained one as it is."""
    if cfg["teacher"]["path"] or is_trained(cfg["teacher"]):
        return saved_model(folder, cfg)
    return hub_model(cfg["teacher"], cfg["teacher"]["denoiser"], folder, True, None, "", cfg["trust"])


def saved_model(folder: Path, cfg: Mapping[str, Any]) -> Any:
    """Return a model from its folder; its family, and its denoiser's, is one that cfg or a YAML file names."""
    trust = cfg["trust"]
    named = {cfg[role]["family"]: cfg[role]["_target_"] for role in ("teacher", "student")}
    nodes = [cfg["denoiser"], cfg["teacher"]["denoiser"], *described("denoiser")]
    targets = {node["_target_"] for node in nodes if node.get("_target_")}
    denoisers = [load_class(target, trust) for target in sorted(targets) if is_trusted(target, trust)]
    by_family = {denoiser.family: denoiser for denoiser in denoisers}
    return load_model(folder, Families(families() | named, trust), by_family)


class Families(Mapping[str, Any]):
    """Classes by family name, each loaded when it is asked for: Whisper's alone takes seconds to import."""

    def __init__(self, targets: Mapping[str, str], trust: Sequence[str]):
        self.targets, self.trust = targets, trust

    def __getitem__(self, family: str) -> Any:
        return load_class(self.targets[family], self.trust)

    def __iter__(self) -> Iterator[str]:
        return iter(self.targets)

    def __len__(self) -> int:
        return len(self.targets)


def teacher_shares(n: int, weights: Sequence[float] | None) -> list[float]:
    """Return the share of each of n teachers, which sum to 1; equal ones without weights."""
    given = weights or [1.0] * n
    return [weight / sum(given) for weight in given]


def terms(
    node: Mapping[str, Any], student: Any, teachers: Sequence[Any], shares: Sequence[float], trust: Sequence[str]
) -> tuple[dict[str, Term], dict[str, Schedule]]:
    """Return the loss terms that are on, bound to the models that they compare, and their weights.

    Args:
        shares: of the teachers; each of several has terms of its own, which share the weight, see `by_teacher`.
    """
    made, weights = {}, {}
    for name, term in node["terms"].items():
        if not is_on(term):
            continue
        for i, (own_name, share) in enumerate(by_teacher(name, term, shares)):
            made[own_name] = instantiate(arguments(term, "loss"), trust)
            made[own_name].against = ITSELF if against_itself(term) else i
            made[own_name].bind(student, student if against_itself(term) else teachers[i] if teachers else None)
            weights[own_name] = Schedule.of(term["weight"]).times(share)
    return made, weights


def streams_read(terms: Mapping[str, Term], n_teachers: int) -> list[list[str]]:
    """Return the streams of each teacher that bound terms compare with, by their full names."""
    return [
        sorted({name for term in terms.values() if term.against == i for name in term.reads}) for i in range(n_teachers)
    ]


def by_teacher(name: str, term: Mapping[str, Any], shares: Sequence[float]) -> list[tuple[str, float]]:
    """Return the names of a term, ``<name>_0``, ``<name>_1``, ... where several teachers have one, and their shares."""
    if not asks_teacher(term) or len(shares) < 2:
        return [(name, 1.0)]
    return [(f"{name}_{i}", share) for i, share in enumerate(shares)]


def phases_by_teacher(
    phases: Sequence[Mapping[str, Any]], loss: Mapping[str, Any], shares: Sequence[float]
) -> list[dict[str, Any]]:
    """Return the phases of a training, in which the weight of a term is shared by the teachers' terms."""

    def shared(weights: Mapping[str, float]) -> dict[str, float]:
        on = {n: w for n, w in weights.items() if is_on(loss["terms"][n])}  # phases_of has checked the others
        return {own: share * w for n, w in on.items() for own, share in by_teacher(n, loss["terms"][n], shares)}

    return [{**phase, "weights": shared(phase.get("weights", {}))} for phase in phases]


def speech_by_speaker(store: Store, seconds: float) -> dict[str, np.ndarray]:
    """Return up to so many seconds of labelled speakers' speech, laid end to end; of many speakers some are chosen."""
    pieces: dict[str, list[np.ndarray]] = {}
    names = sorted({speaker for speaker in store.speakers if speaker is not None}, key=unit_hash)
    left = dict.fromkeys(names[:SPEAKERS_HEARD], int(seconds * RATE_HZ))
    for i, speaker in enumerate(store.speakers):
        if speaker is not None and left.get(speaker, 0) > 0:
            pcm = store.pcm(i)[: left[speaker]]
            pieces.setdefault(speaker, []).append(pcm)
            left[speaker] -= len(pcm)
    return {speaker: np.concatenate(parts) for speaker, parts in pieces.items()}


def noise_type(
    node: Mapping[str, Any],
    store: Store,
    split: str,
    banks: Mapping[Recordings, Path],
    seen: bool | None,
    device: torch.device,
    trust: Sequence[str],
) -> NoiseType:
    """Return a noise type with all it needs of one split on the device."""

    def clips() -> list[tuple[str, np.ndarray]]:
        return [(clip.name, clip.pcm) for clip in load_noise(banks[Recordings.of(node)], split, seen)]

    made = instantiate(arguments(node, "noise"), trust)
    made.load(Resources(split, clips, lambda seconds: speech_by_speaker(store, seconds), device))
    return made


def split_rooms(rooms: Path | None, split: str) -> list[Room]:
    """Return the rooms of a split."""
    return load_rooms(rooms, split) if rooms else []


def mixed_types(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the noise types that a ``noise`` configuration mixes in, of those that it names."""
    mixes = node["operations"]["noise"] + node["operations"]["both"] > 0
    return {name: kind for name, kind in node["types"].items() if mixes and kind["weight"] > 0}


def corruption(
    node: Mapping[str, Any],
    store: Store,
    split: str,
    banks: Mapping[Recordings, Path],
    rooms: Path | None,
    device: torch.device,
    trust: Sequence[str],
    denoiser: bool = False,
) -> Corruption:
    """Return the corruption that a ``noise`` configuration describes, for one split.

    Of several noise types, one that the corpus cannot give (babble, with a single speaker) is left out and said. With
    ``denoiser`` it makes what one learns from, too.
    """
    operations = node["operations"]
    has_rooms = operations["reverb"] + operations["both"] > 0
    types, wanted = {}, mixed_types(node)
    for name, kind in wanted.items():
        try:
            types[name] = noise_type(kind, store, split, banks, None, device, trust)
        except DataError as error:
            if kind.get("folder") or len(wanted) == 1:
                raise
            warn(f"{split} is without {name}, which the corpus cannot give ({error})")
    return Corruption(
        types,
        {name: kind["weight"] for name, kind in wanted.items()},
        operations,
        node["snr"],
        node["snr_range"],
        node["snr_level"],
        node["order"],
        [torch.tensor(room.response, device=device) for room in split_rooms(rooms, split)] if has_rooms else [],
        node["target"] if denoiser else None,
        {
            name: (instantiate(arguments(effect, "effect"), trust), effect["probability"])
            for name, effect in node["effects"].items()
            if effect["probability"] > 0
        },
    )


def corrupt(batch: Batch, how: Corruption) -> Batch:
    """Return the batch with ``noisy_BT`` corrupted, and what a denoiser should make of it."""
    mixed = how(batch.clean_BT, batch.speech_lengths_B, batch.levels_db, batch.speakers, batch.draws, batch.spoken_B)
    batch.noisy_BT, batch.target_BT = mixed.waveform_BT, mixed.target_BT
    return batch


def validation_set(
    store: Store,
    texts: Sequence[str | None],
    how: Corruption,
    n: int,
    batch_seconds: float,
    seed: int,
    device: torch.device,
) -> list[tuple[torch.Tensor, torch.Tensor, list[str]]]:
    """Return the first ``n`` validation utterances in hash order, mixed once: waveforms, lengths, texts."""
    batches = Batches(store, None, batch_seconds, seed)
    chosen = np.sort(np.argsort(batches.ids64)[:n])
    by_length = chosen[np.argsort(-store.n_samples[chosen], kind="stable")]
    size = max(1, int(batch_seconds * RATE_HZ // store.n_samples[by_length[0]]))
    prepared = []
    for start in range(0, len(by_length), size):
        index = by_length[start : start + size]
        batch = corrupt(batches.collate(0, index).to(device), how)
        prepared.append((batch.noisy_BT, batch.speech_lengths_B, [texts[i] or "" for i in index]))
    return prepared


def check_batch(speech: Path, trainer: Mapping[str, Any], ranks: int, window_seconds: int | None = None) -> None:
    """Refuse batches that are too small to give every rank an utterance.

    Args:
        window_seconds: of the model, up to which silence follows; None before it is known.

    Raises:
        ConfigError: with the least that does.
    """
    window = window_seconds if trainer["silence"] > 0 else None
    longest = window or longest_seconds(speech, ["train"])
    # The last batch of an epoch is filled up to at least half of what fits.
    least = math.ceil(longest * (2 * ranks - 1))
    if trainer["batch_seconds"] < least:
        why = " (trainer.silence follows some of them up to the model's window)" if window else ""
        processes = f" on {ranks} processes" if ranks > 1 else ""
        raise ConfigError(
            f"trainer.batch_seconds={trainer['batch_seconds']:g} is too little for clips of up to {longest:.3g} s{why}"
            f"{processes}; set it to {least} or more"
        )
