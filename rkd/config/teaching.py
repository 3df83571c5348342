"""Who teaches whom and by what, as a composed configuration says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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


def live_because(cfg: Mapping[str, Any]) -> str | None:
    """Say why a teacher has to hear every batch of a student's; None where its outputs can be stored."""
    loss, asked = cfg["loss"], cfg["transcripts"]
    terms = {name: term for name, term in loss["terms"].items() if asks_teacher(term)}
    more = [name for name, term in terms.items() if not set(term["teacher"]) <= {"logits", "ctc_logits"}]
    changing = [name for name, term in terms.items() if not isinstance(term.get("temperature"), int | float)]
    reasons = {
        "targets.live=true": cfg["targets"]["live"],
        "student.init=teacher": cfg["student"]["init"] == "teacher",
        f"loss.teacher_input={loss['teacher_input']}": loss["teacher_input"] != "clean",
        f"loss.on_policy={loss['on_policy']}": loss["on_policy"] > 0,
        "the prompts of transcripts.timestamps and text_before": asked["timestamps"] > 0 or asked["text_before"] > 0,
        "several teachers": len(teacher_paths(cfg["teacher"])) > 1,
        f"loss.terms.{next(iter(more), '')} compares more than logits": bool(more),
        f"loss.terms.{next(iter(changing), '')} has a temperature that changes": bool(changing),
        "a term compares all logits, or another number of them": any(
            term.get("divergence") == "mse" or term.get("top_k") is not None for term in terms.values()
        ),
        "the terms compare several streams": len({name for term in terms.values() for name in term["teacher"]}) > 1,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def stores_targets(cfg: Mapping[str, Any]) -> bool:
    """Say whether a student learns from a teacher's stored outputs."""
    return any(map(asks_teacher, cfg["loss"]["terms"].values())) and live_because(cfg) is None
