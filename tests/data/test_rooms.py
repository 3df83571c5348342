"""Rooms: responses begin at the direct path, no room is in two splits, simulated rooms are a set that only grows."""

import math
from pathlib import Path

import noise_sets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noise_sets import save

from rkd.config import compose
from rkd.data.banks import align_room, find_rooms, load_rooms, prepare_rooms, prepare_simulated_rooms
from rkd.data.banks.simulation import draw_room, simulate, split_of_room
from rkd.data.store import SPLITS
from rkd.errors import DataError

DATA = Path(__file__).resolve().parents[2] / "../shared/data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the recordings in ../shared/data")


def room(seed=0, decay_seconds=0.3):
    return noise_sets.response(100, decay_seconds, seed)


def test_room_starts_at_the_direct_path_and_ends_60_db_down():
    response = align_room(room())
    assert response.dtype == np.float32 and response[0] == 1.0
    full = room()[100:].astype(np.float64) / -0.5
    assert np.allclose(response, full[: len(response)])
    lost = np.sum(full[len(response) :] ** 2) / np.sum(full**2)
    assert -61 < 10 * math.log10(lost) <= -60


def test_rooms_are_split_and_a_subfolder_is_one_room(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    out.mkdir()
    for n in range(4):
        save(folder / "hall" / f"position{n}.wav", room(seed=n))
        save(folder / f"room{n}.wav", np.stack([room(seed=10 + n), 0 * room()], axis=1))
    save(folder / "nothing.wav", np.zeros(100))
    summary = prepare_rooms(folder, out)
    assert summary["rejected"] == {"silent": 1}
    rooms = {split: load_rooms(out, split) for split in SPLITS}
    assert sum(map(len, rooms.values())) == 8 and all(rooms.values())
    assert sum(any(r.name.startswith("hall/") for r in rooms[split]) for split in SPLITS) == 1
    first_channel = next(r for split in SPLITS for r in rooms[split] if r.name == "room2")
    expected = align_room(room(seed=12))
    assert np.allclose(first_channel.response[: len(expected)], expected, atol=1e-3)  # 16 bit lengthens the tail


def test_two_rooms_are_too_few(tmp_path):
    for n in range(2):
        save(tmp_path / "in" / f"room{n}.wav", room(seed=n))
    with pytest.raises(DataError, match="2 usable rooms; at least 3"):
        prepare_rooms(tmp_path / "in", tmp_path)


def test_slr28_is_rooms_and_noise_in_one_folder(tmp_path):
    noise_sets.slr28(tmp_path / "in")
    assert len(find_rooms(tmp_path / "in")) == len(noise_sets.ROOMS) + 27
    summary = prepare_rooms(tmp_path / "in", tmp_path)
    assert summary["rejected"] == {} and sum(part["rooms"] for part in summary["splits"].values()) == 16
    rooms = {split: load_rooms(tmp_path, split) for split in SPLITS}
    simulated = [r for split in SPLITS for r in rooms[split] if r.simulated]
    assert len(simulated) == 27 and all("simulated_rirs" in r.name for r in simulated)
    save(tmp_path / "only/pointsource_noises/x.wav", room())
    with pytest.raises(DataError, match="only noise"):
        find_rooms(tmp_path / "only")


def test_many_responses_are_cut_evenly_over_rooms(tmp_path):
    noise_sets.slr28(tmp_path / "in")
    summary = prepare_rooms(tmp_path / "in/RIRS_NOISES/simulated_rirs", tmp_path, max_responses=4)
    train = summary["splits"]["train"]
    assert train["responses"] == 4 and train["rooms"] == 4 and train["left_out"] == 3 * 6 - 4


# ---- simulated rooms ----

RANGES = {
    "length_m": [4, 10], "width_m": [3, 8], "height_m": [2.4, 4], "rt60_seconds": [0.15, 0.3], "distance_m": [0.3, 3],
    "seed": 0,
}  # fmt: skip
span = st.tuples(st.floats(2.5, 20), st.floats(0, 10)).map(lambda pair: [pair[0], pair[0] + pair[1]])


@settings(deadline=None)
@given(st.integers(0, 500), span, span, st.floats(0.05, 1), st.floats(0.1, 30), st.integers(0, 3))
def test_source_and_microphone_are_in_the_room_at_their_distance(number, length_m, width_m, rt60, distance, seed):
    drawn = draw_room(number, length_m, width_m, [2.4, 4], [rt60, rt60], [0.1, distance], seed)
    assert length_m[0] <= drawn.size_m[0] <= length_m[1] and width_m[0] <= drawn.size_m[1] <= width_m[1]
    for place in (drawn.source_m, drawn.microphone_m):
        assert all(0.49 <= x <= size - 0.49 for x, size in zip(place, drawn.size_m, strict=True))
    assert math.dist(drawn.source_m, drawn.microphone_m) == pytest.approx(drawn.distance_m)
    assert drawn.distance_m <= distance + 0.03 and drawn.rt60_seconds >= rt60


def test_a_room_does_not_depend_on_how_many_there_are(tmp_path):
    few, more = tmp_path / "few", tmp_path / "more"
    few.mkdir(), more.mkdir()
    assert prepare_simulated_rooms(RANGES | {"rooms": 3}, few)["splits"] == {
        split: {"responses": 1, "rooms": 1} for split in SPLITS
    }
    prepare_simulated_rooms(RANGES | {"rooms": 8}, more)
    for split in SPLITS:
        rooms = {r.name: r.response for r in load_rooms(more, split)}
        assert {split_of_room(int(name)) for name in rooms} == {split}
        for r in load_rooms(few, split):
            assert r.simulated and np.allclose(r.response, rooms[r.name], atol=1e-5)


def test_the_simulated_direct_path_is_where_sound_arrives_and_as_high_as_its_distance():
    levels = []
    for number in range(6):
        drawn, (x_T, direct) = draw_room(number, **RANGES), simulate(number, **RANGES)
        assert direct == int(np.argmax(np.abs(x_T)))
        levels.append(x_T[direct] * drawn.distance_m)
        assert align_room(x_T, direct)[0] == 1.0
    assert np.ptp(levels) < 0.05 * np.mean(levels)  # the direct path falls off as 1 / distance


def test_a_longer_rt60_rings_longer():
    lengths = [len(align_room(*simulate(4, **RANGES | {"rt60_seconds": [rt60] * 2}))) for rt60 in (0.15, 0.3, 0.45)]
    assert lengths == sorted(lengths) and lengths[2] > 2 * lengths[0]


def test_the_configuration_has_the_ranges(tmp_path):
    settings = compose("distill", ["noise=simulated_reverb"]).noise.simulated
    assert set(settings) == {*RANGES, "rooms"}


@needs_data
def test_real_rooms(tmp_path):
    assert prepare_rooms(DATA / "rir", tmp_path)["rejected"] == {}
    assert [len(load_rooms(tmp_path, split)) for split in SPLITS] == [2, 1, 1]
