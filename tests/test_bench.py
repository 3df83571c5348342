"""The benchmark of mixtures: its loops make what rkd makes, and a way that does not do the work is refused."""

import mix
import pytest
import torch
from mixers import loop_from_disk, loop_in_memory, rkd_batches


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    folders = dict.fromkeys(("speech", "noise", "rooms"))
    return mix.prepare(folders, 4, 0.5, torch.device("cpu"), tmp_path_factory.mktemp("sounds"))


@pytest.mark.parametrize("way", [rkd_batches, loop_from_disk, loop_in_memory])
def test_the_ways_of_its_own_pass(sounds, way):
    mix.check(sounds, way.__name__, way)


def a_decibel_off(sounds, in_room, snr_db):
    return rkd_batches(sounds, in_room, (snr_db[0] + 1, snr_db[1] + 1))


def without_rooms(sounds, in_room, snr_db):
    return rkd_batches(sounds, False, snr_db)


def a_sample_short(*how):
    return lambda clean_BT, draws: rkd_batches(*how)(clean_BT, draws)[:, :-1]


def silent(*how):
    return lambda clean_BT, draws: 0 * clean_BT


@pytest.mark.parametrize(
    ("way", "told"),
    [(a_decibel_off, r"1\.[01] dB from"), (without_rooms, "a room"), (a_sample_short, "became"), (silent, "nan dB")],
)
def test_a_way_that_does_not_do_the_work_is_refused(sounds, way, told):
    with pytest.raises(SystemExit, match=told):
        mix.check(sounds, "spoilt", way)


def test_a_loop_that_makes_other_mixtures_is_refused(sounds, monkeypatch):
    others = sounds.choose
    monkeypatch.setattr(sounds, "choose", lambda *how: [column[::-1] for column in others(*how)])
    with pytest.raises(SystemExit, match="from rkd's"):
        mix.check(sounds, "spoilt", loop_in_memory)
