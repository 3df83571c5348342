"""Targets: what is stored comes back, parts are whole or not there, and the stored loss is the live one's."""

# R rows, V vocabulary, k kept logits

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_streams import randn

from rkd.errors import ConfigError, DataError
from rkd.losses import SoftTokens
from rkd.models.base import Projected, Stream
from rkd.targets import (
    LEVELS,
    StoredTeacher,
    Targets,
    TopK,
    TopRows,
    Writer,
    open_part,
    pack,
    row_type,
    stored_rows,
    unpack,
    written,
)
from rkd.targets import rows as targets
from rkd.tokenizer import build_tokenizer

TEMPERATURES = [1.0, 2.0, 4.0]


def peaked(n_rows, n_outputs, seed=0):
    """Logits like a recogniser's: a few tokens high above many others."""
    logits_RV = 2 * randn(n_rows, n_outputs, seed=seed)
    logits_RV.scatter_add_(1, torch.randint(n_outputs, (n_rows, 8), generator=torch.Generator().manual_seed(seed)),
                           8 + 4 * randn(n_rows, 8, seed=seed + 1))  # fmt: skip
    return logits_RV


@settings(deadline=None, max_examples=25)
@given(st.integers(3, 700), st.integers(1, 40), st.integers(1, 5), st.integers(0, 99))
def test_rows_come_back(n_outputs, half_k, n_rows, seed):
    k = 2 * half_k
    logits_RV = peaked(n_rows, n_outputs, seed) if n_outputs >= 8 else randn(n_rows, n_outputs, seed=seed)
    rows = pack(logits_RV, k, TEMPERATURES)
    if k >= n_outputs:
        assert np.allclose(rows["logits"], logits_RV, rtol=1e-3, atol=1e-3)
        return
    index_Rk, kept_Rk, log_rest_RT = unpack(rows)
    expected = logits_RV.topk(k, dim=1)
    for row in range(n_rows):
        assert set(index_Rk[row]) == set(expected.indices[row].tolist())
        exact_k = logits_RV[row, index_Rk[row]].numpy()
        assert np.abs(kept_Rk[row] - exact_k).max() <= np.ptp(exact_k) / LEVELS * 0.51 + 1e-5
        for t, temperature in enumerate(TEMPERATURES):
            p_V = torch.softmax(logits_RV[row].double() / temperature, -1)
            p_V[index_Rk[row]] = 0
            assert np.exp(log_rest_RT[row, t]) == pytest.approx(p_V.sum().item(), rel=1e-3, abs=1e-7)


def test_a_token_of_whisper_takes_at_most_400_bytes():
    assert row_type(51865, 128, 3).itemsize <= 400 and row_type(51866, 128, 3).itemsize <= 400


def test_the_weights_sum_to_one():
    rows = pack(peaked(6, 3000), 16, TEMPERATURES)
    index, logits, rest = (torch.from_numpy(x) for x in unpack(rows))
    for temperature in TEMPERATURES:
        log_p = TopRows(index, logits, rest, TEMPERATURES).log_probabilities(temperature)
        assert log_p.shape == (6, 17) and torch.allclose(
            log_p.exp().sum(-1), torch.ones(6, dtype=log_p.dtype), atol=1e-6
        )


@pytest.fixture
def folder(tmp_path):
    """Targets of utterances a to e, in two parts of two writers; c has none."""
    logits = {name: peaked(n, 500, n) for name, n in {"a": 3, "b": 1, "d": 4, "e": 2}.items()}
    for prefix, names in (("r0-", "ab"), ("r1-", "de")):
        writer = Writer(tmp_path, prefix)
        for name in names:
            writer.add(name, pack(logits[name], 16, TEMPERATURES))
        writer.flush()
    about = {"stream": "logits", "stride": None, "n_outputs": 500, "k": 16, "temperatures": TEMPERATURES, "shape": {}}
    (tmp_path / "card.json").write_text(json.dumps(about))
    return tmp_path, logits


def test_utterances_are_padded_together(folder):
    path, logits = folder
    assert written(path) == {"a", "b", "d", "e"}
    stream = Targets(path, ["e", "c", "a", "b", "d"]).of([2, 1, 0, 4])
    assert isinstance(stream, TopK) and stream.lengths_B.tolist() == [3, 0, 2, 4]
    assert stream.mask().shape == (4, 4)
    rows = stream.rows(stream.mask())
    expected = torch.cat([logits[name] for name in "aed"])
    for row, exact_V in zip(rows.logits_Rk, expected, strict=True):
        assert row.max().item() == pytest.approx(exact_V.max().item(), abs=1e-5)
    assert torch.equal(rows.index_Rk.sort(-1).values, expected.topk(16).indices.sort(-1).values)


def test_a_damaged_part_is_named(folder):
    path, _ = folder
    [part] = path.glob("part-r1-*.npy")
    data = bytearray(part.read_bytes())
    data[-7] ^= 1
    part.write_bytes(bytes(data))
    with pytest.raises(DataError, match=f"{part.name} is not what was written"):
        Targets(path, ["a"])
    part.write_bytes(bytes(data[:-100]))
    with pytest.raises(DataError, match="is damaged"):
        open_part(part.with_suffix(".json"))


def test_an_interrupted_part_is_not_there(folder):
    path, _ = folder
    (path / "part-r0-00001.npy").write_bytes(b"half")
    assert written(path) == {"a", "b", "d", "e"} and len(Targets(path, ["a"]).of([0]).lengths_B) == 1


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_students_gradient_on_peaked_distributions(temperature):
    """Within 1% of the live teacher's where the largest hold the mass; docs/targets.md says what happens elsewhere."""
    n_rows, n_outputs = 8, 51865
    teacher_RV = 2 * randn(n_rows, n_outputs)
    at = torch.randint(n_outputs, (n_rows, 30), generator=torch.Generator().manual_seed(0))
    teacher_RV.scatter_add_(1, at, 60 + 5 * randn(n_rows, 30, seed=1))
    index, logits, rest = (torch.from_numpy(x) for x in unpack(pack(teacher_RV, 128, TEMPERATURES)))
    gradients = []
    for teacher in (teacher_RV, TopRows(index, logits.float(), rest, TEMPERATURES)):
        student_RV = (0.7 * teacher_RV + randn(n_rows, n_outputs, seed=2)).requires_grad_()
        SoftTokens(temperature=temperature).of_rows(student_RV, teacher, None).sum().backward()
        gradients.append(student_RV.grad)
    live, stored = gradients
    assert (stored - live).norm() <= 0.01 * live.norm()


def test_a_stream_is_stored_alike_at_once_and_in_parts(monkeypatch):
    layer, hidden_BND = torch.nn.Linear(6, 50).requires_grad_(False), randn(3, 4, 6)
    lengths_B = torch.tensor([4, 1, 3])
    projected = Projected(hidden_BND, layer, 50, lengths_B)
    n_outputs, rows = stored_rows(projected, 8, TEMPERATURES)
    assert n_outputs == 50 and len(rows) == 8
    monkeypatch.setattr(targets, "ROWS", 3)
    for stream in (projected, Stream(layer(hidden_BND), lengths_B, None)):
        for ours, theirs in zip(unpack(stored_rows(stream, 8, TEMPERATURES)[1]), unpack(rows), strict=True):
            assert np.allclose(ours, theirs, atol=1e-5)


def test_a_student_of_another_vocabulary_is_refused(folder):
    path, _ = folder
    build_tokenizer(["one two"]).save_pretrained(path / "tokenizer")
    card = json.loads((path / "card.json").read_text())
    card["shape"] = {"depth": {}, "width": 4, "window_seconds": 4, "language": None}
    (path / "card.json").write_text(json.dumps(card))
    teacher = StoredTeacher(path, ["a", "b"])
    teacher.check([[1, 2, 3], None], build_tokenizer(["one two"]))
    with pytest.raises(ConfigError, match=r"targets\.live=true"):
        teacher.check([[1, 2, 3], [1]], build_tokenizer(["one three"]))
    with pytest.raises(DataError, match="of other labels"):
        teacher.check([[1, 2], [1]], build_tokenizer(["one two"]))
