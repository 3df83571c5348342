"""What each key of the configuration may hold."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Any

from rkd.config.rules import NULL, Bool, Either, Float, Int, ListOf, OneOf, Range, Str, Table
from rkd.normalisation import LEARNED, SCORED


def _under(prefix: str, rules: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{key}": rule for key, rule in rules.items()}


SEED = Int(0, 2**63 - 1)
SHARE = Float(0, 1)
COUNT = Int(1)
SNR_DB = Float(-100, 100)
CLASS = Str(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", "a class as package.module.Class")

PLAIN = {
    "seed": SEED,
    "root": Str(),
    "name": Either(NULL, Str(r"[\w][\w.+-]*", "a name of letters, digits and . _ + -")),
    "build": OneOf("auto", "never"),
    "trust": ListOf(Str(r"[A-Za-z_]\w*", "the name of a package")),
    "device": OneOf("auto", "cpu", "cuda"),
    "workers": Int(0),
    "prepare_workers": Either(NULL, COUNT),
    "log_every": COUNT,
}

# Which recordings a noise type reads, and how they are split: `rkd.data.banks.Recordings`.
BANK = {
    "folder": Either(NULL, Str()),
    "layout": OneOf("folder", "musan", "demand", "esc50", "urbansound8k", "wham", "slr28"),
    "split": OneOf("file", "class", "official"),
    "holdout": Either(Float(above=0, max=1), ListOf(Str(), min_items=1)),
    "classes": Either(NULL, ListOf(Str(), min_items=1)),
    "without": ListOf(Str()),
    "max_minutes": Float(above=0),
}

NOISE_TYPES = {
    "*._target_": CLASS,
    "*.weight": Float(0),
    **{f"*.{key}": rule for key, rule in BANK.items()},
    "white.db_per_octave": Float(-24, 24),
    "pink.db_per_octave": Float(-24, 24),
    "brown.db_per_octave": Float(-24, 24),
    "babble.voices": Range(COUNT),
}

# Constructor arguments of rkd's own effects; another may have others.
_DB = Range(Float(-100, 100))
_HZ = Either(NULL, Range(Float(above=0, max=8000)))
EFFECTS = {
    "*._target_": CLASS,
    "*.probability": SHARE,
    "*.frequency_masks": Int(0),
    "*.frequency_share": SHARE,
    "*.time_masks": Int(0),
    "*.time_seconds": Float(0),
    "*.time_share": SHARE,
    "*.gain_db": _DB,
    "*.level_db": Either(NULL, _DB),
    "*.share": Either(NULL, Range(SHARE)),
    "*.low_hz": _HZ,
    "*.high_hz": _HZ,
    "*.loss": Range(Float(0, 0.99)),
    "*.burst": Float(1),
    "*.packet_seconds": Float(0.001, 1),
    "*.fill": OneOf("zero", "repeat"),
    "*.formats": ListOf(OneOf("gsm", "mp3", "opus", "vorbis"), min_items=1),
    "*.compression": Range(SHARE),
}

NOISE = {
    "operations.none": SHARE,
    "operations.noise": SHARE,
    "operations.reverb": SHARE,
    "operations.both": SHARE,
    "snr": ListOf(SNR_DB, min_items=1),
    "snr_range": Either(NULL, Range(SNR_DB)),
    "snr_level": OneOf("active", "rms"),
    "order": OneOf("reverb_then_noise", "noise_then_reverb"),
    "target": OneOf("early", "dry"),
    "only": Float(0, 0.9),
    **BANK,
    "rooms": Either(NULL, Str()),
    "max_responses": COUNT,
    "simulated.rooms": Int(3),
    "simulated.length_m": Range(Float(2, 100)),
    "simulated.width_m": Range(Float(2, 100)),
    "simulated.height_m": Range(Float(2, 50)),
    "simulated.rt60_seconds": Range(Float(above=0, max=5)),
    "simulated.distance_m": Range(Float(above=0, max=100)),
    "simulated.seed": SEED,
    **{f"types.{key}": rule for key, rule in NOISE_TYPES.items()},
    **{f"effects.{key}": rule for key, rule in EFFECTS.items()},
}

SCHEDULE_SHAPES = OneOf("linear", "cosine")

# Constructor arguments of rkd's own terms, by the names that their YAML gives them.
SOFT = {
    "divergence": OneOf("kl", "reverse_kl", "js", "cross_entropy", "mse"),
    "temperature": Either(Float(above=0), OneOf("adaptive")),
    "top_k": Either(NULL, COUNT),
    "beta": Float(above=0, max=0.999999),
    "temperature_range": Range(Float(above=0)),
}
LAYERS = {"layers": Either(OneOf("even", "last"), ListOf(ListOf(Int(0), length=2), min_items=1))}
HIDDEN = {
    "part": OneOf("encoder", "decoder"),
    **LAYERS,
    "distance": OneOf("l1", "mse", "cosine", "l1_cosine", "correlation", "cka"),
    "cosine_weight": Float(0),
}
RELATIONS = {"part": OneOf("encoder", "decoder"), **LAYERS, "between": OneOf("frames", "utterances")}
ATTENTION = {"part": OneOf("encoder", "cross"), **LAYERS, "distance": OneOf("kl", "mse")}
FGSM = {"stream": OneOf("logits", "ctc_logits"), "snr_db": SNR_DB}
VAT = {**FGSM, "xi_snr_db": SNR_DB, "iterations": COUNT}

DENOISER = {
    "_target_": Either(NULL, CLASS),
    "mixing": Either(SHARE, OneOf("learned", "snr")),
}

# Constructor arguments of rkd's own denoisers; another may have others.
DENOISER_SHAPE = {
    "body": OneOf("recurrent", "convolutional"),
    "width": COUNT,
    "layers": COUNT,
    "bidirectional": Bool(),
    "n_fft": Int(16, 4096),
    "hop": COUNT,
    "enc_kernel_size": Int(2),
    "enc_num_feats": COUNT,
    "msk_num_feats": COUNT,
    "msk_num_hidden_feats": COUNT,
    "msk_num_layers": COUNT,
    "msk_num_stacks": COUNT,
    "msk_activate": OneOf("sigmoid", "relu"),
}

BALANCE = {"balance": OneOf("fixed", "gradient"), "balance_every": COUNT}

LOSS_TERMS = {
    "terms.*._target_": CLASS,
    "terms.*.weight": Float(0),
    "terms.*.weight.from": Float(0),
    "terms.*.weight.to": Float(0),
    "terms.*.weight.shape": SCHEDULE_SHAPES,
    "terms.*.needs": ListOf(Str()),
    "terms.*.teacher": ListOf(Str()),
    "terms.*.against": OneOf("teacher", "itself"),
    "terms.*.temperature.from": Float(above=0),
    "terms.*.temperature.to": Float(above=0),
    "terms.*.temperature.shape": SCHEDULE_SHAPES,
    "terms.*.label_smoothing": Float(0, 0.999999),
    **_under("terms.soft", SOFT),
    **_under("terms.consistency", SOFT),
    **_under("terms.hidden", HIDDEN),
    **_under("terms.relations", RELATIONS),
    **_under("terms.attention", ATTENTION),
    **_under("terms.fgsm", FGSM),
    **_under("terms.vat", VAT),
}

ADAPTERS = {
    "adapters": NULL,
    "adapters.rank": COUNT,
    "adapters.alpha": Float(above=0),
    "adapters.dropout": Float(0, 0.99),
    "adapters.targets": ListOf(Str(), min_items=1),
}
# What is asked of a teacher's transcripts where they are the labels; `rkd.transcripts.FILTERS`, and the search.
TRANSCRIPTS = {
    "beams": COUNT,
    "timestamps": SHARE,
    "text_before": SHARE,
    "max_wer": Either(NULL, Float(0)),
    "min_confidence": Either(NULL, Float(max=0)),
    "max_compression": Either(NULL, Float(above=0)),
    "max_characters_per_second": Either(NULL, Float(above=0)),
    "min_words": Either(NULL, COUNT),
}
WEIGHTS = Either(OneOf("all"), ListOf(Str(), min_items=1))  # of a model
TRAINER: dict[str, Any] = {
    "steps": COUNT,
    "batch_seconds": Float(above=0),
    "accumulate": COUNT,
    "learning_rate": Float(above=0, max=1),
    "betas": ListOf(Float(0, 0.999999), length=2),
    "weight_decay": Float(0),
    "warmup": SHARE,
    "schedule": OneOf("cosine", "linear", "constant"),
    "clip_norm": Float(above=0),
    "clean": SHARE,
    "silence": SHARE,
    "precision": OneOf("auto", "fp32", "bf16", "fp16"),
    "validate_every": COUNT,
    "validate_utterances": COUNT,
    "patience": Either(NULL, COUNT),
    "train": WEIGHTS,
    "freeze": ListOf(Str()),
    "unfreeze_every": Either(NULL, COUNT),
    "layer_decay": Float(above=0, max=1),
    "recompute": Bool(),
    "compile": Bool(),
    "shard": Bool(),
    "average": Either(NULL, Float(above=0, max=0.999999)),
    **ADAPTERS,
}
# What a phase may set for itself.
TRAINER["phases"] = ListOf(
    Table(
        {
            "steps": Either(COUNT, Float(above=0, max=0.999999)),
            **{key: TRAINER[key] for key in ("train", "freeze", "learning_rate", "warmup", "schedule", "clean")},
            "snr": ListOf(SNR_DB, min_items=1),
            "snr_range": Range(SNR_DB),
            "weights": Table({"*": Float(0)}),
        }
    )
)

EVALUATE = {
    "snr": ListOf(SNR_DB, min_items=1),
    "folder": BANK["folder"],
    "layout": BANK["layout"],
    "rooms": Either(NULL, Str()),
    "systems": ListOf(Str()),
    "beams": COUNT,
    "max_utterances": Either(NULL, COUNT),
    "quality_utterances": Int(0),
    "noise_only": Bool(),
    "padded": Bool(),
    "batch_seconds": Float(above=0),
    "seed": SEED,
    **{f"types.{key}": rule for key, rule in NOISE_TYPES.items()},
}

# What the rest of rkd must know of a model, besides its constructor's arguments.
MODEL = {
    "_target_": CLASS,
    "name": Str(r"[\w-]+", "a word"),
    "family": Str(r"\w+", "a word"),
    "output": Str(),
    "provides": ListOf(Str(), min_items=1),
    "soft_loss": CLASS,
    "label_loss": CLASS,
    "ctc_weight": Float(0),
}

# Constructor arguments of rkd's own shapes; another family may have others.
SHAPE = {
    "n_mels": Int(8, 256),
    "hop": Int(16, 1600),
    "dropout": Either(NULL, Float(0, 0.9)),
    "d_model": COUNT,
    "width": COUNT,
    "ffn": COUNT,
    "heads": COUNT,
    "kernel": Int(1, 999),
    "n_mfcc": Int(4, 256),
    "n_fft": Int(64, 8192),
    "encoder_layers": Either(NULL, COUNT),
    "decoder_layers": Either(NULL, COUNT),
}

# Where a pretrained model lies, and what it may be.
ORIGIN = {
    "source": Str(),
    "revision": Str(r"[\w./-]+", "a branch, a tag or a commit"),
    "model_types": ListOf(Str(), min_items=1),
}

# Constructor arguments of the families that are read from a pretrained model.
HUB = {
    "language": Str(r"[a-z]{2,3}", "a language's code, such as en, de or yue"),
    "task": OneOf("transcribe", "translate"),
    "window": OneOf("original", "trimmed"),
}

START = {
    "init_from": Either(NULL, Str()),
    "vocabulary": OneOf("inherit", "corpus"),
}

INIT = {
    "init": OneOf("random", "teacher", "pretrained"),
    "encoder_from": Either(NULL, ListOf(Int(0), min_items=1)),
    "decoder_from": Either(NULL, ListOf(Int(0), min_items=1)),
}


# What is done with the text and the lengths of every source, outside its constructor.
CORPUS = {
    "normaliser": OneOf(*LEARNED),
    "tokenizer": OneOf("auto", "word", "char"),
    "min_seconds": Float(0),
    "max_seconds": Float(above=0, max=30),
    "max_utterances": Either(NULL, COUNT),
    "speed": ListOf(Float(0.5, 2)),
    "tempo": ListOf(Float(0.5, 2)),
    "pitch_shift": ListOf(Float(-12, 12)),
    "weights.*": Float(0),
}
# What makes further training utterances, each with the value that changes nothing.
PERTURBATIONS = {"speed": 1, "tempo": 1, "pitch_shift": 0}

WORDS = ListOf(Str(), min_items=1)

# Constructor arguments of rkd's own sources, those of `data.sources.<name>` too; another source may have others.
SOURCE = {
    "_target_": CLASS,
    "path": Str(),
    "split": OneOf("hash", "speaker", "official", "auto"),
    "fractions": ListOf(SHARE, length=3),
    "parts": Either(NULL, WORDS),
    "validation_speakers": WORDS,
    "name": Either(NULL, Str()),
    "revision": Str(),
    "streaming": Bool(),
    "text": Either(NULL, Str()),
    "speaker": Either(NULL, Str()),
    "max_rows": Either(NULL, COUNT),
    "language": Either(NULL, Str()),
    "n_train": COUNT,
    "n_validation": Int(0),
    "n_test": Int(0),
    "words": WORDS,
    "length": Range(COUNT),
    "accents": WORDS,
    "variants.train": WORDS,
    "variants.validation": WORDS,
    "variants.test": WORDS,
    "rate_wpm": Range(Int(80, 450)),
    "pitch": Range(Int(0, 99)),
    "gap_seconds": Range(Float(0)),
    "test_speakers": Either(NULL, WORDS),
    "test_from": WORDS,
    "seed": SEED,
}

# Constructor arguments of rkd's own sweepers and launchers; another may have others.
SWEEPER = {
    "_target_": CLASS,
    "n_trials": COUNT,
    "at_once": COUNT,
    "startup": Int(0),
    "prune": Bool(),
    "seed": SEED,
}
LAUNCHER = {
    "_target_": CLASS,
    "n_jobs": COUNT,
    "cluster": Either(NULL, Str()),
    "address": Either(NULL, Str()),
    "num_cpus": Float(0),
    "num_gpus": Float(0),
}

SCHEMA: dict[str, Any] = {
    **PLAIN,
    **_under("data", CORPUS | SOURCE),
    **_under("noise", NOISE),
    **_under("denoiser", DENOISER | DENOISER_SHAPE),
    **_under("student", MODEL | SHAPE | ORIGIN | HUB | START | INIT),
    **_under("teacher", MODEL | SHAPE | ORIGIN | HUB | START),
    "teacher.finetune": Bool(),
    **_under("teacher.noise", NOISE),
    **_under("teacher.denoiser", DENOISER | DENOISER_SHAPE),
    "teacher.loss.teacher_input": OneOf("clean"),  # nobody teaches the teacher
    "teacher.loss.labels": OneOf("text"),
    "teacher.loss.on_policy": Float(0, 0),
    "teacher.loss.on_policy_temperature": Float(0),
    **_under("teacher.loss", BALANCE),
    **_under("teacher.loss", LOSS_TERMS),
    **_under("teacher.trainer", TRAINER),
    "teacher.seed": SEED,
    "teacher.path": Either(NULL, Str(), ListOf(Str(), min_items=1)),
    "teacher.weights": Either(NULL, ListOf(Float(above=0), min_items=1)),
    "loss.teacher_input": OneOf("clean", "noisy"),
    "loss.labels": OneOf("text", "teacher"),
    "loss.on_policy": SHARE,
    "loss.on_policy_temperature": Float(0),
    **_under("transcripts", TRANSCRIPTS),
    "targets.live": Bool(),
    "targets.k": Int(2, even=True),
    "targets.sample": Either(NULL, COUNT),
    "targets.codebooks": Either(NULL, COUNT),
    "targets.max_bytes": Float(0),
    "scoring.normaliser": OneOf(*SCORED),
    **_under("loss", BALANCE),
    **_under("loss", LOSS_TERMS),
    **_under("trainer", TRAINER),
    **_under("evaluate", EVALUATE),
    **_under("launcher", LAUNCHER),
    **_under("sweeper", SWEEPER),
}

# A key that has no rule may stand below these: the constructor of the node's `_target_` decides about it.
FREE = (
    "data.", "denoiser.", "loss.terms.", "noise.types.", "noise.effects.", "evaluate.types.", "student.", "teacher.",
    "launcher.", "sweeper.",
)  # fmt: skip

# Keys that must be there whatever YAML was chosen (a group of the user's own starts from `_common` or `default`).
_OPTIONAL = {
    **_under("student", SHAPE | ORIGIN | HUB),
    **_under("teacher", SHAPE | ORIGIN | HUB | {"vocabulary": None, "finetune": None}),
    **_under("data", SOURCE),
    **_under("denoiser", DENOISER | DENOISER_SHAPE),
    **_under("teacher.denoiser", DENOISER | DENOISER_SHAPE),
    **_under(
        "teacher.loss", dict.fromkeys(("teacher_input", "labels", "on_policy", "on_policy_temperature")) | BALANCE
    ),
    **_under("launcher", LAUNCHER),
    **_under("sweeper", SWEEPER),
    **_under("trainer", ADAPTERS),
    **_under("teacher.trainer", ADAPTERS),
}
REQUIRED = (
    *(key for key in SCHEMA if key not in _OPTIONAL and not {"types", "terms", "effects", "*"} & set(key.split("."))),
    *(
        "data.weights",
        "noise.types",
        "teacher.noise.types",
        "noise.effects",
        "teacher.noise.effects",
        "evaluate.types",
        "loss.terms",
        "teacher.loss.terms",
        "data._target_",
        "denoiser._target_",
        "teacher.denoiser._target_",
        "launcher._target_",
        "sweeper._target_",
    ),
)


def rule_for(key: str) -> Any | None:
    """Return the rule of a dotted key, or None where the schema has none."""
    key = re.sub(r"^data\.sources\.[^.]+\.", "data.", key)
    if key in SCHEMA:
        return SCHEMA[key]
    return next((rule for pattern, rule in SCHEMA.items() if "*" in pattern and _matches(key, pattern)), None)


def _matches(key: str, pattern: str) -> bool:
    return key.count(".") == pattern.count(".") and fnmatchcase(key, pattern)
