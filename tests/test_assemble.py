"""What a corpus and a model must have in common, and which terms and models a configuration makes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from loss_streams import of_depth, randn, stream
from omegaconf import OmegaConf

from rkd import assemble
from rkd.assemble import check_language, phases_by_teacher, teacher_shares, terms
from rkd.config import compose
from rkd.data.store import StoreWriter
from rkd.errors import ConfigError, DataError
from rkd.losses import ITSELF
from rkd.models import save_model
from rkd.models.enhanced import Enhanced, bare, family_of


@pytest.fixture
def corpus(tmp_path):
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
def test_a_corpus_in_the_language_that_is_asked_for(corpus, capsys, languages):
    check_language(corpus(*languages), model("de"), "student")
    check_language(corpus("fr"), model(None), "student")  # no language is asked for
    assert capsys.readouterr().err == ""


def test_a_corpus_in_another_language_is_refused(corpus):
    with pytest.raises(DataError, match=r"in de, .* set teacher.language=de"):
        check_language(corpus("de", None), model("en"), "teacher")


def test_a_corpus_of_several_languages_is_said(corpus, capsys):
    check_language(corpus("de", "en"), model("en"), "student")
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


# --- denoisers -------------------------------------------------------------------------------------------------------

MASK = ["denoiser=mask_conv", "denoiser.width=8", "denoiser.layers=1"]


def configured(*overrides):
    config = compose(
        "distill", ["student=ctc_tiny", "student.d_model=32", "student.ffn=64", "loss=supervised", *overrides]
    )
    return OmegaConf.to_container(config)


def made(tokenizer, *overrides):
    cfg = configured(*overrides)
    return assemble.new_model(cfg["student"], cfg["denoiser"], tokenizer, 2, [])


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.fixture
def runs(tokenizer, tmp_path):
    """The model folders of a run that wears a denoiser, and of one that does not."""
    folders = {}
    for name, overrides in (("worn", [*MASK, "denoiser.mixing=learned"]), ("bare", [])):
        torch.manual_seed(1)
        folders[name] = tmp_path / name
        save_model(made(tokenizer, *overrides), "ctc", folders[name])
    return folders


def test_a_denoiser_changes_nothing_of_the_recogniser(tokenizer):
    models = []
    for overrides in ([], [*MASK, "denoiser.mixing=snr"]):
        torch.manual_seed(0)
        models.append(made(tokenizer, *overrides))
    assert not isinstance(models[0], Enhanced) and isinstance(models[1], Enhanced)
    assert equal(models[0], models[1].recogniser) and models[1].mixing.kind == "snr"
    assert models[1].denoiser.shape["width"] == 8


@pytest.mark.parametrize("run", ["worn", "bare"])
def test_going_on_from_a_run_keeps_its_denoiser_or_gives_it_one(runs, run):
    cfg = configured(*MASK, "denoiser.mixing=learned", f"student.init_from={runs[run]}")
    before = assemble.saved_model(runs[run], cfg)
    model = assemble.continued_model(cfg["student"], cfg["denoiser"], cfg)
    assert isinstance(model, Enhanced) and equal(model.recogniser, bare(before))
    assert run == "bare" or equal(model, before)


@pytest.mark.parametrize("overrides", [[], [*MASK, "denoiser.width=9"], ["denoiser=convtasnet"]])
def test_going_on_from_a_run_without_its_denoiser_is_refused(runs, overrides):
    cfg = configured(*overrides, f"student.init_from={runs['worn']}")
    with pytest.raises(ConfigError, match=r"wears the denoiser mask .*width 8.*choose the same one"):
        assemble.continued_model(cfg["student"], cfg["denoiser"], cfg)


def test_a_denoiser_of_rkds_own_is_loaded_whatever_the_configuration_chooses(runs):
    model = assemble.saved_model(runs["worn"], configured())
    assert isinstance(model, Enhanced) and family_of(model) == "mask + ctc"


def test_a_batch_is_corrupted_with_its_target(store, make_batches):
    noise = OmegaConf.to_container(compose("distill", ["noise=white", "noise.snr=[-20,20]"]).noise)
    how = {
        denoiser: assemble.corruption(noise, store, "train", {}, None, torch.device("cpu"), [], denoiser)
        for denoiser in (False, True)
    }
    assert assemble.corrupt(make_batches().collate(0, np.arange(8)), how[False]).target_BT is None
    batch = make_batches().collate(0, np.arange(8))
    assert batch.target_BT is batch.clean_BT
    batch = assemble.corrupt(batch, how[True])
    loud = (batch.noisy_BT.abs().amax(1) > 1 - 1e-6).tolist()
    assert any(loud) and not all(loud)
    for clean_T, target_T, is_loud in zip(batch.clean_BT, batch.target_BT, loud, strict=True):
        assert torch.allclose(target_T, clean_T) != is_loud  # turned down with the mixture
