"""A student and what it is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from rkd.data.batches import Batch
from rkd.losses import ITSELF, Adversarial, Balance, Schedule, Term, check_given, sums_over_rows
from rkd.models.base import Streams


class Objective(nn.Module):
    """A student and the loss terms it is trained on, as one module, so that both are optimised and synchronised.

    Args:
        student: the model that is trained.
        terms: by name.
        weights: of the terms; those that change have the values of the share of the training set by ``at``.
        balance_every: steps between two measurements of a `Balance` of the terms; None without one.
    """

    def __init__(
        self,
        student: nn.Module,
        terms: Mapping[str, Term],
        weights: Mapping[str, float | Schedule],
        balance_every: int | None = None,
    ):
        super().__init__()
        self.student = student
        self.terms = nn.ModuleDict(terms)
        self.balance = Balance(len(terms), balance_every) if balance_every else None
        self.schedules = {name: w if isinstance(w, Schedule) else Schedule.of(w) for name, w in weights.items()}
        self.at(0.0)

    def at(self, share: float) -> None:
        """Set weights and terms to their values when a share of the training, from 0 to 1, is done."""
        self.weights = {name: schedule.at(share) for name, schedule in self.schedules.items()}
        for term in self.all_terms:
            term.at(share)

    @property
    def all_terms(self) -> list[Term]:
        """The terms, in the order of their names' dictionary."""
        return cast(list[Term], list(self.terms.values()))

    def forward(self, batch: Batch, teachers: Sequence[Streams]) -> dict[str, Tensor]:
        """Return each term's sum over the batch.

        Args:
            teachers: the streams of each teacher, for terms that are not against the student itself.
        """
        streams = batch.through(self.student, batch.noisy_BT)
        itself: Streams = {}
        if any(term.against == ITSELF for term in self.all_terms):
            # After the pass with gradients: autocast keeps the weights that it cast first for both.
            with torch.no_grad():
                itself = batch.through(self.student, batch.clean_BT)

        comparing = any(term.teacher for term in self.all_terms)
        speech = {name: stream.where(batch.spoken_B) for name, stream in streams.items()} if comparing else {}
        # Stored outputs end with the speech.
        heard = {n: s.until(batch.speech_lengths_B) for n, s in speech.items()} if batch.stored else speech

        def reference(term: Term) -> Streams:
            if not term.teacher:
                return {}
            given = itself if term.against == ITSELF else teachers[term.against]
            check_given(term, given)
            return given

        def value(term: Term) -> Tensor:
            if isinstance(term, Adversarial):
                attacked = batch.through(self.student, term.perturbed(self.student, batch))
                return term(attacked, streams, batch)
            ours = streams if not term.teacher else speech if term.against == ITSELF else heard
            return term(ours, reference(term), term.sees(batch))

        terms = dict(zip(self.terms, self.all_terms, strict=True))
        taking_part = {name: term for name, term in terms.items() if term.applies(batch)}
        by_row = {name: term for name, term in taking_part.items() if term.rows_of in streams}
        values = {name: value(term) for name, term in taking_part.items() if name not in by_row}
        if by_row:
            theirs = {name: reference(term)["logits"] for name, term in by_row.items() if term.teacher}
            values |= sums_over_rows(by_row, streams["logits"], theirs, batch)
        return {name: values.get(name, batch.clean_BT.new_zeros(())) for name in terms}
