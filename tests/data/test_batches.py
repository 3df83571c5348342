"""Batches: a pure function of seed, epoch and store, whatever the workers, the ranks and the past."""

import itertools
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rkd import assemble
from rkd.data.batches import Batches, Labels, Prompted, stream
from rkd.errors import DataError
from rkd.models.base import Stream
from rkd.noise import Babble, Coloured, Corruption, Resources

CPU = torch.device("cpu")


class Corpus:
    """As much of a store as the order of its batches depends on."""

    def __init__(self, ids, n_samples, sources=None):
        self.ids, self.n_samples, self.sources = ids, n_samples, sources or [None] * len(ids)

    def __len__(self):
        return len(self.ids)


def ids(batches, epoch):
    return [[batches.store.ids[i] for i in index] for index in batches.epoch(epoch)]


@given(st.lists(st.none() | st.lists(st.integers(0, 2**31 - 1), max_size=5), max_size=20))
def test_labels_give_back_what_they_were_made_of(found):
    labels = Labels(iter(found))
    assert list(labels) == found and labels[1:] == found[1:] and len(labels) == len(found)
    assert labels.n_tokens == sum(len(tokens or ()) for tokens in found)


def take(batches, n, **kwargs):
    return list(itertools.islice(stream(batches, kwargs.pop("start", 0), **kwargs), n))


@pytest.mark.parametrize("batch_seconds", [1.4, 3.0, 7.0, 100.0])
@pytest.mark.parametrize("silence", [0.0, 0.5])
def test_an_epoch_has_each_utterance_once_and_no_batch_is_too_large(make_batches, batch_seconds, silence):
    batches = make_batches(max(batch_seconds, 2.0 if silence else 0), silence=silence)
    for epoch in range(4):
        indices = batches.epoch(epoch)
        assert sorted(np.concatenate(indices).tolist()) == list(range(len(batches.store)))
        for index in indices:
            assert batches.collate(epoch, index).clean_BT.numel() <= batches.batch_samples


def test_some_utterances_are_noise_alone_with_nothing_to_write(make_batches):
    batches, all_spoken = make_batches(only=0.3), make_batches()
    silent = {epoch: set() for epoch in range(20)}
    for epoch in silent:
        for index in batches.epoch(epoch):
            batch, expected = batches.collate(epoch, index), all_spoken.collate(epoch, index)
            assert expected.spoken_B.all() and expected.noisy_BT is expected.clean_BT
            assert torch.equal(batch.clean_BT, expected.clean_BT) and torch.equal(batch.lengths_B, expected.lengths_B)
            for row, speaks in enumerate(batch.spoken_B.tolist()):
                labels = [int(i) for i in batch.labels_BL[row] if i >= 0]
                assert labels == [int(i) for i in expected.labels_BL[row] if i >= 0][0 if speaks else -1 :]
                heard_T = batch.clean_BT[row] * speaks
                assert torch.equal(batch.noisy_BT[row], heard_T) and torch.equal(batch.target_BT[row], heard_T)
                assert batch.texts[row] == (expected.texts[row] if speaks else "")
                alone = batches.collate(epoch, index[row : row + 1])  # whatever it is batched with
                assert bool(alone.spoken_B[0]) is speaks
                silent[epoch] |= set() if speaks else {batch.ids[row]}
            spoken = batch.spoken()
            assert spoken.seconds * 16000 == pytest.approx(batch.lengths_B[batch.spoken_B].sum().item())
            assert spoken.n_tokens == batch.n_tokens - (~batch.spoken_B).sum()
    assert np.mean([len(names) for names in silent.values()]) / 24 == pytest.approx(0.3, abs=0.06)
    assert silent[0] != silent[1]


def test_a_share_of_the_samples_has_timestamps_and_is_told_what_was_said_before(make_batches):
    plain = make_batches(only=0.1)
    n = len(plain.store)
    timed, before = [[900, *row] if i % 5 else None for i, row in enumerate(plain.labels)], [[800, i] for i in range(n)]
    before[3] = []
    batches = make_batches(only=0.1, prompted=Prompted(0.5, timed, 0.2, before))
    has, told = Counter(), Counter()
    for epoch in range(40):
        for index in batches.epoch(epoch):
            batch, expected = batches.collate(epoch, index), plain.collate(epoch, index)
            for row, i in enumerate(index):
                labels, own = ([int(x) for x in b.labels_BL[row] if x >= 0] for b in (batch, expected))
                given = [int(x) for x in batch.before_BP[row] if x >= 0] if batch.before_BP is not None else []
                assert labels in (own, timed[i]) and given in ([], before[i])
                speaks = bool(batch.spoken_B[row])
                assert speaks or (labels == own and not given)
                has[speaks and labels != own] += speaks and timed[i] is not None
                told[bool(given)] += speaks and i != 3
    assert has[True] / has.total() == pytest.approx(0.5, abs=0.06)
    assert told[True] / told.total() == pytest.approx(0.2, abs=0.05)
    assert all(batch.before_BP is None for batch in plain.once())


def test_the_order_is_a_function_of_seed_and_epoch(make_batches):
    batches = make_batches()
    assert ids(batches, 3) == ids(make_batches(), 3)
    orders = [ids(batches, 0), ids(batches, 1), ids(make_batches(seed=1), 0)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))
    # Other companions too, not the same batches in another order.
    assert {frozenset(batch) for batch in orders[0]} != {frozenset(batch) for batch in orders[1]}


def test_little_of_a_batch_is_padding():
    lengths = np.random.default_rng(0).integers(8000, 100_000, 3000)
    corpus = Corpus([str(i) for i in range(3000)], lengths)
    padded = sum(lengths[index].max() * len(index) for index in Batches(corpus, None, 80.0, 0).epoch(0))
    assert lengths.sum() / padded > 0.91


def test_a_batch_holds_what_the_store_holds(make_batches, tokenizer):
    from rkd.tokenizer import decode

    batches = make_batches()
    batch = batches.collate(2, np.array([5, 0, 9]))
    for row, i in enumerate([5, 0, 9]):
        pcm, n = batches.store.pcm(i), batches.store.n_samples[i]
        assert torch.equal(batch.clean_BT[row, :n] * 32768, torch.from_numpy(pcm.astype(np.float32)))
        assert (batch.clean_BT[row, n:] == 0).all() and batch.lengths_B[row] == batch.speech_lengths_B[row] == n
        tokens = [t for t in batch.labels_BL[row].tolist() if t != -100]
        assert decode(tokenizer, tokens) == batch.texts[row] == batches.store.texts[i]
        assert tokens[-1] == tokenizer.eos_token_id and batch.speakers[row] == batches.store.speakers[i]
        assert batch.levels_db[row] == batches.store.levels_db[i]
    assert batch.n_tokens == sum(len(batches.store.texts[i].split()) + 1 for i in (5, 0, 9))
    assert batch.seconds.item() == pytest.approx(batches.store.n_samples[[5, 0, 9]].sum() / 16000)


def test_silence_extends_its_share_of_the_clips_up_to_the_window(make_batches):
    batches = make_batches(silence=0.25, window_seconds=2.0)
    longer, total = [], 0
    for epoch in range(60):
        batch = batches.collate(epoch, np.arange(len(batches.store)))
        assert (batch.lengths_B >= batch.speech_lengths_B).all() and (batch.lengths_B <= 32000).all()
        assert batch.clean_BT.shape[1] == batch.lengths_B.max()
        for row, speech, heard in zip(batch.clean_BT, batch.speech_lengths_B, batch.lengths_B, strict=True):
            assert (row[speech:] == 0).all()
            if heard > speech:
                longer.append(float((heard - speech) / (32000 - speech)))
        total += len(batches.store)
    assert len(longer) / total == pytest.approx(0.25, abs=4 * np.sqrt(0.1875 / total))
    assert np.histogram(longer, 4, (0, 1))[0] == pytest.approx(len(longer) / 4, rel=0.35)  # any length of silence
    batches = make_batches(silence=0.0)
    assert (batches.collate(0, np.arange(24)).lengths_B.numpy() == batches.store.n_samples).all()


def test_weights_say_how_often_a_source_is_heard():
    corpus = Corpus([str(i) for i in range(300)], np.full(300, 16000), [("a", "b", None)[i % 3] for i in range(300)])
    batches = Batches(corpus, None, 8.0, 0, weights={"a": 2.5, "b": 0.25})
    n = 40
    heard = Counter(corpus.sources[i % 300] for epoch in range(n) for batch in batches.epoch(epoch) for i in batch)
    assert heard["a"] / n == pytest.approx(250, rel=0.02) and heard["b"] / n == pytest.approx(25, rel=0.1)
    assert heard[None] == 100 * n
    entries = batches.entries(0)
    assert len(set(entries.tolist())) == len(entries)
    index, draws = batches._split(0, entries)
    assert len(set(draws.uniform("snr").tolist())) == len(entries)  # each time with noise of its own
    plain = Batches(corpus, None, 8.0, 0)
    first = np.flatnonzero(entries < 300)
    assert (draws.uniform("snr")[first] == plain._split(0, index[first])[1].uniform("snr")).all()


def test_an_utterance_without_labels_is_in_no_epoch(make_batches):
    whole = make_batches()
    labels = [None if i % 3 == 0 else tokens for i, tokens in enumerate(whole.labels)]
    batches = Batches(whole.store, labels, 6.0, 0)
    for epoch in range(3):
        heard = [i for batch in batches.epoch(epoch) for i in batch]
        assert sorted(heard) == [i for i in range(len(labels)) if i % 3]
    with pytest.raises(DataError, match="has labels and a weight"):
        Batches(whole.store, [None] * len(labels), 6.0, 0)


def test_starting_later_equals_skipping(make_batches):
    batches = make_batches(4.0, silence=0.3)
    n_epoch = len(batches.epoch(0))
    everything = take(batches, 2 * n_epoch + 3)
    for start in (1, n_epoch - 1, n_epoch, n_epoch + 2):
        for workers in (0, 2):
            for expected, batch in zip(
                everything[start:], take(batches, 4, start=start, workers=workers), strict=False
            ):
                assert batch.ids == expected.ids and torch.equal(batch.clean_BT, expected.clean_BT)
                assert np.array_equal(batch.draws.uniform("x"), expected.draws.uniform("x"))


def noise_of(store):
    types = {"white": Coloured(0), "babble": Babble([2, 3])}
    for kind in types.values():
        kind.load(Resources("train", lambda *k: [], lambda seconds: assemble.speech_by_speaker(store, seconds), CPU))
    return Corruption(types, dict.fromkeys(types, 1.0), {"none": 0.1, "noise": 0.9}, [0.0, 10.0])


def by_id(batches, noise, n, **kwargs):
    """Return what each utterance looks like in the first n batches: draws, waveform heard, companions' number."""
    found = {}
    for position, batch in enumerate(take(batches, n, **kwargs)):
        batch = assemble.corrupt(batch, noise)
        for row, name in enumerate(batch.ids):
            found[position, name] = (batch.draws.uniform("x")[row], batch.noisy_BT[row, : batch.lengths_B[row]])
    return found


def test_workers_and_ranks_change_nothing(make_batches, store):
    batches, noise = make_batches(5.0, silence=0.3), noise_of(store)
    n = 2 * len(batches.epoch(0))
    expected = by_id(batches, noise, n)
    runs = [by_id(batches, noise, n, workers=workers) for workers in (2, 4)]
    runs.append({k: v for rank in (0, 1) for k, v in by_id(batches, noise, n, rank=rank, world=2).items()})
    for found in runs:
        assert found.keys() == expected.keys()
        for key, (draw, waveform_T) in expected.items():
            assert found[key][0] == draw
            assert torch.allclose(found[key][1], waveform_T, atol=1e-5)


@pytest.mark.parametrize("world", [2, 3])
def test_every_rank_has_something_in_every_batch(make_batches, world):
    """A rank without an utterance could not take part in the step."""
    batches = make_batches(4.0 * world)  # twice the window for each, as `assemble.check_batch` asks for
    for epoch in range(20):
        assert min(len(index) for index in batches.epoch(epoch)) >= world


def test_ranks_share_a_batch_without_overlap(make_batches):
    batches = make_batches(6.0)
    whole, first, second = (take(batches, 5, rank=r, world=w) for r, w in ((0, 1), (0, 2), (1, 2)))
    for w, a, b in zip(whole, first, second, strict=True):
        assert sorted(a.ids + b.ids) == sorted(w.ids)


def test_once_reads_every_utterance_once_longest_first(make_batches):
    batches = make_batches(4.0)
    read = list(batches.once())
    names = [name for batch in read for name in batch.ids]
    assert sorted(names) == sorted(batches.store.ids)
    lengths = [n for batch in read for n in batch.speech_lengths_B.tolist()]
    assert lengths == sorted(lengths, reverse=True)
    assert all(batch.clean_BT.numel() <= batches.batch_samples for batch in read)
    some = set(batches.store.ids[3:9])
    assert {name for batch in batches.once(some) for name in batch.ids} == some


def test_moving_a_batch_keeps_everything(make_batches):
    batch = make_batches().collate(0, np.arange(4))
    moved = pickle.loads(pickle.dumps(batch)).to(CPU)
    assert moved.ids == batch.ids and torch.equal(moved.clean_BT, batch.clean_BT)
    assert np.array_equal(moved.draws.uniform("x"), batch.draws.uniform("x"))


def test_every_tensor_of_a_batch_is_changed_once(make_batches):
    batch = make_batches().collate(0, np.arange(2))
    batch.stored = [{"layer": Stream(torch.zeros(2, 3, 4), torch.tensor([3, 1]), 320)}]
    changed = []
    batch.each(lambda tensor: changed.append(tensor) or tensor)
    assert len({id(tensor) for tensor in changed}) == len(changed) == 7  # speech, which is the target, too


@pytest.mark.gpu
def test_a_loader_pins_all_of_a_batch(make_batches):
    batch = next(stream(make_batches(), 0, pin=True))
    assert batch.clean_BT.is_pinned() and batch.labels_BL.is_pinned()
