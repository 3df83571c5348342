"""Who teaches whom and by what, as a composed configuration says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rkd.errors import ConfigError

LOGITS = ("logits", "ctc_logits")
STORED = {*LOGITS, "hidden.encoder", "hidden.decoder"}
TEMPERATURES = (1.0, 2.0, 4.0)  # that log-normalisers are stored at, besides those of the loss


def of_frames(stream: str) -> bool:
    """Say whether the steps of a stream of this name are times, and not label tokens."""
    return stream == "ctc_logits" or ".encoder." in stream


def is_trained(teacher: dict[str, Any]) -> bool:
    """Say whether a teacher is trained here, and not used as it is."""
    return teacher["path"] is None and teacher.get("finetune", True)


def teacher_paths(teacher: dict[str, Any]) -> list[str]:
    """Return the folders that the user named as teachers."""
    path = teacher["path"]
    return [path] if isinstance(path, str) else path or []


def is_on(term: Mapping[str, Any]) -> bool:
    """Say whether a loss term takes part: its weight is not 0, or changes."""
    return term["weight"] != 0


def against_itself(term: Mapping[str, Any]) -> bool:
    """Say whether a loss term compares the student with itself on clean speech, and not with a teacher."""
    return term.get("against", "teacher") == "itself"


def asks_teacher(term: Mapping[str, Any]) -> bool:
    """Say whether a loss term takes part and needs a teacher."""
    return is_on(term) and bool(term.get("teacher")) and not against_itself(term)


def teacher_terms(cfg: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the loss terms that take part and need a teacher."""
    return {name: term for name, term in cfg["loss"]["terms"].items() if asks_teacher(term)}


def compares(term: Mapping[str, Any], *kinds: str) -> bool:
    """Say whether a loss term asks for any of the teacher's streams of some kinds, such as ``hidden``."""
    return any(name.partition(".")[0] in kinds for name in term["teacher"])


def live_because(cfg: Mapping[str, Any]) -> str | None:
    """Say why a student's teachers have to be loaded, as far as the configuration tells; None where they need not.

    What is said once the corpus and the student are known is said by `rkd.stages.targets`.
    """
    loss, asked, terms = cfg["loss"], cfg["transcripts"], teacher_terms(cfg)
    reasons = {
        "targets.live=true": cfg["targets"]["live"],
        "student.init=teacher": cfg["student"]["init"] == "teacher",
    }
    if terms:
        reasons |= {
            f"loss.teacher_input={loss['teacher_input']}": loss["teacher_input"] != "clean",
            f"loss.on_policy={loss['on_policy']:g}": loss["on_policy"] > 0,
            "the prompts of transcripts.timestamps and text_before": bool(asked["timestamps"] or asked["text_before"]),
        }
    drawn_at = {str(term.get("temperature")) for term in terms.values() if compares(term, *LOGITS)}
    sample = cfg["targets"]["sample"]
    if sample is not None:
        reasons["targets.sample draws at one temperature, and loss.terms have several"] = len(drawn_at) > 1
    for name, term in terms.items():
        reasons |= {
            f"loss.terms.{name} is not rkd's own, and may ask for all logits": not term["_target_"].startswith("rkd."),
            f"loss.terms.{name} compares more than logits and hidden layers": not set(term["teacher"]) <= STORED,
        }
        if compares(term, *LOGITS):
            reasons |= {
                f"loss.terms.{name} has no fixed temperature": not isinstance(term.get("temperature"), int | float),
                f"loss.terms.{name} compares all logits": term.get("divergence") == "mse",
                f"loss.terms.{name} has a top_k of its own": term.get("top_k") is not None,
                f"loss.terms.{name} is of no divergence that draws estimate (targets.sample)": (
                    sample is not None and term.get("divergence", "kl") not in ("kl", "cross_entropy")
                ),
            }
    return next((reason for reason, holds in reasons.items() if holds), None)


def stores_targets(cfg: Mapping[str, Any]) -> bool:
    """Say whether a student learns from teachers' stored outputs, as far as the configuration tells."""
    return bool(teacher_terms(cfg)) and live_because(cfg) is None


def stored_inputs(cfg: Mapping[str, Any], stream: str) -> dict[str, Any]:
    """Return what a stored stream depends on, besides the corpus, the teacher and the labels."""
    if stream not in LOGITS:
        coded = {"codebooks": n} if (n := cfg["targets"]["codebooks"]) else {}
        return {"stream": stream, "k": None, "temperatures": [], "draws": None, **coded}
    own = {float(term["temperature"]) for term in teacher_terms(cfg).values() if stream in term["teacher"]}
    k, draws = cfg["targets"]["k"], cfg["targets"]["sample"]
    return {"stream": stream, "k": k, "temperatures": sorted(own if draws else {*TEMPERATURES, *own}), "draws": draws}


def check_codebooks(n: int | None, width: int) -> None:
    """Refuse codebooks that do not divide the features of a teacher's layers.

    Raises:
        ConfigError: with what to take.
    """
    if width % (n or 1):
        raise ConfigError(
            f"targets.codebooks={n} does not divide the {width} features of the teacher's layers; take a divisor of "
            "them"
        )


def stored_settings(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of ``targets`` that a student's result depends on where its teachers' outputs are stored."""
    kinds = {"k": LOGITS, "sample": LOGITS, "max_bytes": ("hidden",), "codebooks": ("hidden",)}
    terms = teacher_terms(cfg).values()
    return {key: cfg["targets"][key] for key, of in kinds.items() if any(compares(term, *of) for term in terms)}
