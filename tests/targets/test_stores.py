"""Finished folders of targets: each utterance's rows, padded together as a batch asks for them."""

# k kept logits

import json
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from loss_streams import randn
from target_rows import CARD, peaked

from rkd.errors import DataError
from rkd.models.base import Stream
from rkd.targets import BOOKS, SomeLogits, StoredTeacher, Targets, Writer, codebooks, describe, open_part, pack
from rkd.tokenizer import build_tokenizer

N_ROWS = {"a": 3, "b": 1, "d": 4, "e": 2}


def write(folder, card, values, books_CKd=None):
    """Write targets of utterances a to e, in two parts; c has none."""
    folder.mkdir()
    (folder / "card.json").write_text(json.dumps(vars(card)))
    if books_CKd is not None:
        np.save(folder / BOOKS, books_CKd.numpy())
    for rank, names in enumerate(("ab", "de")):
        with Writer(folder, rank) as writer:
            for name in names:
                writer.add(name, pack(values[name], card, torch.full((len(values[name]),), 0.5), books_CKd))
    return folder


@pytest.fixture
def logits(tmp_path):
    values = {name: peaked(n, 500, n) for name, n in N_ROWS.items()}
    return write(tmp_path / "logits", CARD, values), values


@pytest.fixture
def layer(tmp_path):
    values = {name: randn(n, 6, seed=n) for name, n in N_ROWS.items()}
    card = replace(CARD, stream="hidden.encoder.1", stride=320, n_outputs=6, k=None, temperatures=[])
    return write(tmp_path / "layer", card, values), values


def test_logits_are_padded_to_the_labels(logits):
    folder, values = logits
    targets = Targets(folder, ["e", "c", "a", "b", "d"])
    assert targets.n_rows.tolist() == [2, 0, 3, 1, 4] and targets.n_bytes == 10 * CARD.row_type.itemsize
    stream = targets.of([2, 1, 0, 4], 5)
    assert isinstance(stream, SomeLogits) and stream.lengths_B.tolist() == [3, 0, 2, 4] and stream.n_steps == 5
    rows, expected = stream.rows(stream.mask()), torch.cat([values[name] for name in "aed"])
    for row, exact_V in zip(rows.logits_Rk, expected, strict=True):
        assert row.max().item() == pytest.approx(exact_V.max().item(), abs=1e-5)
    assert torch.equal(rows.index_Rk.sort(-1).values, expected.topk(16).indices.sort(-1).values)
    assert targets.of([4, 3], 2).lengths_B.tolist() == [2, 1]  # fewer labels than were stored: silence is heard
    assert torch.equal(stream.each(lambda x: x + 0).rows(stream.mask()).log_rest_RT, rows.log_rest_RT)


def test_a_reading_process_maps_the_parts_itself(logits):
    targets = Targets(logits[0], ["e", "c", "a"])
    dumped = pickle.dumps(targets)
    assert open_part(logits[0] / "part-0-00000.json").tobytes() not in dumped
    again, stream = pickle.loads(dumped).of([0, 2], 3), targets.of([0, 2], 3)
    assert torch.equal(again.rows(again.mask()).logits_Rk, stream.rows(stream.mask()).logits_Rk)


def test_draws_are_padded_to_the_labels(tmp_path):
    values = {name: peaked(n, 500, n) for name, n in N_ROWS.items()}
    card = replace(CARD, draws=8, temperatures=[2.0])
    folder = write(tmp_path / "drawn", card, values)
    stream = Targets(folder, ["e", "c", "a"]).of([2, 1, 0], 4)
    rows = stream.rows(stream.mask())
    assert stream.lengths_B.tolist() == [3, 0, 2] and rows.drawn_Rn.shape == (5, 8)
    log_p_RV = (torch.cat([values["a"], values["e"]]).double() / 2).log_softmax(-1)
    assert torch.allclose(rows.entropy_R.double(), -(log_p_RV.exp() * log_p_RV).sum(-1), rtol=1e-6)


def test_a_layer_in_codebooks_is_made_of_their_centroids(tmp_path):
    values = {name: randn(n, 6, seed=n) for name, n in N_ROWS.items()}
    card = replace(CARD, stream="hidden.encoder.1", stride=320, n_outputs=6, k=None, temperatures=[], codebooks=3)
    books_CKd = randn(3, 256, 2)
    folder = write(tmp_path / "coded", card, values, books_CKd)
    targets = Targets(folder, ["e", "c", "a"])
    stream = targets.of([0, 1, 2], 9)
    assert card.row_type.itemsize == 3 and stream.lengths_B.tolist() == [2, 0, 3] and stream.stride == 320
    expected = codebooks.decode(codebooks.encode(values["a"], books_CKd), books_CKd)
    assert torch.equal(stream.values_BND[2], expected)
    np.save(folder / BOOKS, books_CKd.numpy() * np.float32(1.01))
    with pytest.raises(DataError, match=r"coded: card\.json or codebooks\.npy is not what part-0-0.* was written"):
        Targets(folder, ["e"])
    (folder / BOOKS).unlink()
    with pytest.raises(DataError, match=r"codebooks\.npy is damaged .*; remove .*coded, and the same command"):
        Targets(folder, ["e"])


@pytest.mark.parametrize("card", [None, "{", '{"stream": 3}', "[]"])
def test_a_damaged_card_is_named(logits, card):
    folder, _ = logits
    (folder / "card.json").unlink()
    if card is not None:
        (folder / "card.json").write_text(card)
    with pytest.raises(DataError, match=r"card\.json is damaged .*; remove .*logits, and the same command"):
        Targets(folder, ["e"])


def test_a_damaged_description_of_a_teacher_is_named(make_whisper, tmp_path):
    describe(make_whisper(1), tmp_path)
    about = tmp_path / "teacher.json"
    data = about.read_bytes()
    for damaged in (data[:-9], b"\xff" + data, b"{}", b"[]"):
        about.write_bytes(damaged)
        with pytest.raises(DataError, match=r"teacher\.json is damaged .*; remove .*, and the same command makes it"):
            StoredTeacher(tmp_path)


def test_a_card_of_other_rows_is_refused(logits):
    folder, _ = logits
    other = replace(CARD, temperatures=[4.0, 2.0, 1.0])
    (folder / "card.json").write_text(json.dumps(vars(other)))
    with pytest.raises(DataError, match=r"card\.json or codebooks\.npy is not what part-0"):
        Targets(folder, ["e"])


def test_a_layer_is_padded_to_the_longest(layer):
    folder, values = layer
    stream = Targets(folder, ["e", "c", "a"]).of([0, 1, 2], 9)
    assert type(stream) is Stream and stream.stride == 320 and stream.lengths_B.tolist() == [2, 0, 3]
    assert stream.values_BND.shape == (3, 3, 6)
    for row, n, name in ((0, 2, "e"), (2, 3, "a")):
        assert torch.allclose(stream.values_BND[row, :n].float(), values[name], atol=1e-3)
    assert not stream.values_BND[0, 2:].any() and not stream.values_BND[1].any()


def test_frames_that_are_named(tmp_path):
    values = {name: peaked(n, 500, n) for name, n in N_ROWS.items()}
    folder = write(tmp_path / "frames", replace(CARD, stream="ctc_logits", stride=320), values)
    stream = Targets(folder, ["a", "b", "d"]).of([0, 1, 2])
    steps_BN = torch.tensor([[0, 2], [0, 0], [3, 1]])
    valid_BN = torch.tensor([[True, True], [True, False], [True, True]])
    rows = stream.rows_at(steps_BN, valid_BN)
    expected = [values["a"][0], values["a"][2], values["b"][0], values["d"][3], values["d"][1]]
    assert [set(row.tolist()) for row in rows.index_Rk] == [set(e.topk(16).indices.tolist()) for e in expected]


def test_a_teacher_without_its_model(tmp_path, logits, layer):
    tokenizer = build_tokenizer(["one two"])
    model = SimpleNamespace(
        tokenizer=tokenizer, depth={"encoder": 3}, width=6, window_seconds=4, stride=320, shape={"language": "en"}
    )
    describe(model, tmp_path)
    teacher = StoredTeacher(tmp_path)
    assert (teacher.depth, teacher.width, teacher.window_seconds, teacher.stride) == ({"encoder": 3}, 6, 4, 320)
    assert teacher.shape == {"language": "en"} and teacher.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert teacher.streams(np.array([0]), 3) == {}
    folders = {"logits": logits[0], "hidden.encoder.1": layer[0]}
    teacher.read(folders, ["a", "b", "c"], [[1, 2, 3], [1], None])
    streams = teacher.streams(np.array([1, 0]), 4)
    assert streams["logits"].n_steps == 4 and streams["hidden.encoder.1"].n_steps == 3
    with pytest.raises(DataError, match="logits are of other labels"):
        teacher.read(folders, ["a", "b", "c"], [[1, 2], [1], None])
