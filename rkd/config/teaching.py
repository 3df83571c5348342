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
