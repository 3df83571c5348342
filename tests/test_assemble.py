"""What a corpus and a model must have in common, and which terms a configuration makes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from loss_streams import of_depth, randn, stream

from rkd.assemble import check_language, phases_by_teacher, teacher_shares, terms
from rkd.data.store import StoreWriter
from rkd.errors import DataError
from rkd.losses import ITSELF


@pytest.fixture
def speech(tmp_path):
    """A function that writes a corpus with an utterance in each of some languages."""

    def write(*languages):
        (tmp_path / "summary.json").write_text('{"has_text": true}')
        with StoreWriter(tmp_path / "part-00000.arrow") as writer:
            for i, language in enumerate(languages):
                for split in ("train", "validation", "test"):
                    pcm = np.ones(50, dtype=np.int16)
                    writer.add(f"{split}{i}", split, "text", "s", language, None, pcm, -20.0)
        return tmp_path

    return write


def model(language):
    return SimpleNamespace(shape={} if language is None else {"language": language})


@pytest.mark.parametrize("languages", [["de"], ["de-AT", None], ["German"], [None], ["klingon"]])
def test_a_corpus_in_the_language_that_is_asked_for(speech, capsys, languages):
    check_language(speech(*languages), model("de"), "student")
    check_language(speech("fr"), model(None), "student")  # no language is asked for
    assert capsys.readouterr().err == ""


def test_a_corpus_in_another_language_is_refused(speech):
    with pytest.raises(DataError, match=r"in de, .* set teacher.language=de"):
        check_language(speech("de", None), model("en"), "teacher")


def test_a_corpus_of_several_languages_is_said(speech, capsys):
    check_language(speech("de", "en"), model("en"), "student")
    assert "de, en" in capsys.readouterr().err


# --- loss terms ------------------------------------------------------------------------------------------------------

SOFT = {"_target_": "rkd.losses.SoftTokens", "teacher": ["logits"], "temperature": 3.0, "weight": 0.5}
LABELS = {"_target_": "rkd.losses.CrossEntropy", "needs": ["logits"], "weight": 0.25}


def test_a_term_without_weight_is_off():
    made, weights = terms({"terms": {"soft": {**SOFT, "weight": 0}, "labels": LABELS}}, of_depth(4, 1), [], [], [])
    assert list(made) == ["labels"] and weights["labels"].at(0.3) == 0.25
    schedule = {"from": 0, "to": 1, "shape": "linear"}
    node = {"terms": {"soft": {**SOFT, "weight": schedule}}}
    made, weights = terms(node, of_depth(4, 1), [of_depth(4, 1)], [1.0], [])
    assert list(made) == ["soft"] and weights["soft"].at(0.3) == pytest.approx(0.3) and made["soft"].against == 0


def test_a_term_against_the_student_itself_needs_no_teacher():
    node = {"terms": {"consistency": {**SOFT, "against": "itself"}}}
    for teachers in ([], [of_depth(4, 1), of_depth(5, 1)]):
        made, weights = terms(node, of_depth(4, 1), teachers, teacher_shares(len(teachers), None), [])
        assert list(made) == ["consistency"] and made["consistency"].against == ITSELF
        assert weights["consistency"].at(0) == 0.5


@pytest.mark.parametrize("given, shares", [(None, [0.5, 0.5]), ([3, 1], [0.75, 0.25])])
def test_several_teachers_have_the_gradient_of_their_mixture(given, shares):
    """sum_i w_i KL(p_i || q) has the gradient of KL(sum_i w_i p_i || q): they differ by what q is no part of."""
    node = {"terms": {"soft": SOFT, "labels": LABELS}}
    made, weights = terms(node, of_depth(4, 1), [of_depth(4, 1), of_depth(6, 2)], teacher_shares(2, given), [])
    assert list(made) == ["soft_0", "soft_1", "labels"] and [made[f"soft_{i}"].against for i in (0, 1)] == [0, 1]
    assert sum(weights[f"soft_{i}"].at(0.0) for i in (0, 1)) == pytest.approx(0.5)
    theirs = [randn(1, 4, 8, seed=i, scale=3).double() for i in (1, 2)]
    gradients = []
    for by_term in (True, False):
        ours = randn(1, 4, 8, scale=3).double().requires_grad_()
        if by_term:
            loss = sum(
                weights[f"soft_{i}"].at(0.0)
                * made[f"soft_{i}"]({"logits": stream(ours, [4])}, {"logits": stream(theirs[i], [4])}, None)
                for i in (0, 1)
            )
        else:
            mixture = sum(share * (x / 3).softmax(-1) for share, x in zip(shares, theirs, strict=True))
            loss = 0.5 * 9 * (mixture * (mixture.log() - (ours / 3).log_softmax(-1))).sum()
        loss.backward()
        gradients.append(ours.grad)
    assert torch.allclose(*gradients, atol=1e-9) and gradients[0].abs().max() > 1e-2


def test_the_weights_of_a_phase_are_shared_too():
    loss = {"terms": {"soft": SOFT, "labels": LABELS}}
    phases = [{"steps": 3, "weights": {"soft": 2.0, "labels": 1.0}}, {}]
    assert phases_by_teacher(phases, loss, [0.75, 0.25]) == [
        {"steps": 3, "weights": {"soft_0": 1.5, "soft_1": 0.5, "labels": 1.0}},
        {"weights": {}},
    ]
    assert phases_by_teacher(phases, loss, [1.0]) == [phases[0], {"weights": {}}]
