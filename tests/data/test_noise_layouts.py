"""Published noise sets: each file's class, recording and split; what is wrong or half there is said."""

import shutil
from pathlib import Path, PurePosixPath

import noise_sets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rkd.config.schema import BANK
from rkd.data.banks.layouts import LAYOUTS, Clip, find_noise, noise_files, room_of
from rkd.data.banks.splits import in_turn, rank_split, split_noise
from rkd.data.store import SPLITS
from rkd.errors import ConfigError, DataError

DATA = Path(__file__).resolve().parents[2] / "../shared/data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the recordings in ../shared/data")
OFFICIAL = ("esc50", "urbansound8k", "wham")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """The folder of each set."""
    root = tmp_path_factory.mktemp("sets")
    for name, make in noise_sets.SETS.items():
        make(root / name)
    return root


def copied(sets, name, tmp_path):
    return Path(shutil.copytree(sets / name, tmp_path / name))


def labels_of(clips):
    return {clip.label for clip in clips.values()}


def test_every_layout_can_be_configured():
    assert BANK["layout"].words == tuple(LAYOUTS)


@pytest.mark.parametrize(
    "layout, n, labels",
    [
        ("folder", 16, {"rain", "saw", "dog", "wind"}),
        ("musan", 9, {"noise"}),
        ("demand", 6, {"DKITCHEN", "NFIELD", "OOFFICE", "PCAFETER", "STRAFFIC", "TMETRO"}),
        ("esc50", 30, {"rain", "dog", "chainsaw"}),
        ("urbansound8k", 80, set(noise_sets.CITY.values())),
        ("wham", 15, {"L0", "L1", "L2", "L3"}),
        ("slr28", 12, {"pointsource", "isotropic"}),
    ],
)
def test_a_set_is_found_as_published(sets, layout, n, labels):
    clips = find_noise(sets / layout, layout)
    assert len(clips) == n and labels_of(clips) == labels
    assert all((sets / layout / name).is_file() for name in clips)


@pytest.mark.parametrize(
    "layout, name, row, clip",
    [
        ("musan", "musan/music/fma/music-fma-0001.wav", None, Clip("music", "music-fma-0001")),
        ("musan", "music/fma-western-art/music-fma-wa-0001.wav", None, Clip("music", "music-fma-wa-0001")),
        ("musan", "notes/hum.wav", None, None),
        ("musan", "RIRS_NOISES/pointsource_noises/noise-free-sound-0001.wav", None, None),
        ("demand", "16k/TMETRO/ch01.wav", None, Clip("TMETRO", "TMETRO")),
        ("demand", "TMETRO/ch02.wav", None, None),
        ("esc50", "audio/5-9032-B-0.wav", {"category": "dog"}, Clip("dog", "9032", "test")),
        ("esc50", "audio/5-9032-B-0.wav", None, None),
        ("esc50", "dog/4-9032-B-0.flac", None, Clip("dog", "9032", "validation")),
        ("urbansound8k", "audio/fold10/7061-6-0-0.wav", {"class": "gun_shot", "fold": "10"},
         Clip("gun_shot", "7061", "test")),
        ("urbansound8k", "audio/fold1/7061-6-0-0.wav", {"class": "gun_shot", "fold": "1"},
         Clip("gun_shot", "7061", "train")),
        ("wham", "wham_noise/cv/01ta_1_02b_-1.wav", {"File ID": "F1", "Location ID": "L2"},
         Clip("L2", "F1", "validation")),
        ("slr28", "pointsource_noises/noise-free-sound-0001.wav", None, Clip("pointsource", "noise-free-sound-0001")),
        ("slr28", "real_rirs_isotropic_noises/RVB2014_type1_noise_largeroom1_2.wav", None,
         Clip("isotropic", "RVB2014 largeroom1")),
        ("slr28", "real_rirs_isotropic_noises/RWCP_type5_noise_cirline_ofc_ambient1.wav", None,
         Clip("isotropic", "RWCP ofc")),
        ("slr28", "simulated_rirs/smallroom/Room001/Room001-00001.wav", None, None),
        ("folder", "rain/a/b.wav", None, Clip("rain", "rain/a/b.wav")),
        ("folder", "hum.wav", None, Clip("hum", "hum.wav")),
    ],
)  # fmt: skip
def test_where_a_file_belongs(layout, name, row, clip):
    assert LAYOUTS[layout].place(name, row) == clip


@pytest.mark.parametrize(
    "name, room",
    [
        ("smallroom/Room001/Room001-00001", ("smallroom/Room001", True)),
        ("simulated_rirs/largeroom/Room001/Room001-00002", ("largeroom/Room001", True)),
        ("Room007/Room007-00002", ("Room007", True)),
        ("real/RVB2014_type1_rir_largeroom1_near_angla", ("RVB2014 largeroom1", False)),
        ("RVB2014_type1_rir_largeroom1_far_anglb", ("RVB2014 largeroom1", False)),
        ("RWCP_type1_rir_circle_e1a_imp000", ("RWCP e1a", False)),
        ("RWCP_type2_rir_cirline_ofc_imp130", ("RWCP ofc", False)),
        ("RWCP_type4_rir_p30l", ("RWCP unknown", False)),
        ("air_type1_air_binaural_aula_carolina_1_1_90_3", ("air aula", False)),
        ("air_type1_air_phone_bt_office_hhp", ("air office", False)),
        ("RVB2014_type1_noise_largeroom1_1", None),
        ("RIRS_NOISES/pointsource_noises/noise-free-sound-0001", None),
        ("hall/position3", ("hall", False)),
        ("cellar", ("cellar", False)),
    ],
)
def test_the_room_of_a_response(name, room):
    assert room_of(name) == room


def test_classes_are_chosen_and_left_out(sets):
    assert labels_of(find_noise(sets / "musan", "musan", ["noise", "music"])) == {"noise", "music"}
    assert "music" in labels_of(find_noise(sets / "musan", "musan", ["music"], ["noise"]))
    left = find_noise(sets / "urbansound8k", "urbansound8k", None, ["children_playing", "street_music"])
    assert labels_of(left) == {"air_conditioner", "dog_bark"}
    with pytest.raises(ConfigError, match=r"noise.classes.*no class cat; it has dog, rain"):
        find_noise(sets / "folder", "folder", ["cat"])
    with pytest.raises(ConfigError, match=r"noise.without.*no class cats"):
        find_noise(sets / "folder", "folder", None, ["cats"])
    with pytest.raises(ConfigError, match="leaves no class"):
        find_noise(sets / "folder", "folder", None, ["rain", "saw", "dog", "wind"])


def test_only_what_is_read_counts_for_a_bank(sets):
    files = {path.name for path in noise_files(sets / "demand", "demand", find_noise(sets / "demand", "demand"))}
    assert files == {"ch01.wav"}
    found = find_noise(sets / "esc50", "esc50")
    assert sets / "esc50/meta/esc50.csv" in noise_files(sets / "esc50", "esc50", found)


# ---- splits ----


@pytest.mark.parametrize("layout", OFFICIAL)
def test_the_published_split(sets, layout):
    clips = find_noise(sets / layout, layout)
    where = split_noise(clips, "official")
    parts = {
        "esc50": lambda name: {"4": "validation", "5": "test"}.get(PurePosixPath(name).name[0], "train"),
        "urbansound8k": lambda name: {"fold9": "validation", "fold10": "test"}.get(
            PurePosixPath(name).parts[1], "train"
        ),
        "wham": lambda name: {"tr": "train", "cv": "validation", "tt": "test"}[PurePosixPath(name).parts[1]],
    }
    assert where == {name: parts[layout](name) for name in clips} and set(where.values()) == set(SPLITS)


@pytest.mark.parametrize("layout", sorted(set(LAYOUTS) - set(OFFICIAL)))
def test_a_layout_without_a_published_split_says_so(sets, layout):
    with pytest.raises(ConfigError, match=r"noise.split=official"):
        split_noise(find_noise(sets / layout, layout), "official")


# Names in the manner of each set; few different parts, so that recordings meet in several folds and classes.
few = st.integers(1, 12)
part = st.sampled_from(["tr", "cv", "tt"])
city = st.sampled_from(["siren", "drilling", "dog_bark"])
NAMED = {
    "folder": st.tuples(st.builds("{}/{}.wav".format, city, few), st.none()),
    "musan": st.tuples(st.builds("noise/free-sound/noise-free-sound-{:04d}.wav".format, few), st.none()),
    "demand": st.tuples(st.builds("{}/ch{:02d}.wav".format, st.text("ABC", min_size=1, max_size=2), few), st.none()),
    "esc50": st.tuples(
        st.builds("audio/{}-{}-{}-{}.wav".format, st.integers(1, 5), few, st.sampled_from("AB"), few),
        st.fixed_dictionaries({"category": city}),
    ),
    "urbansound8k": st.tuples(
        st.builds("audio/fold1/{}-{}-0-{}.wav".format, few, few, few),
        st.fixed_dictionaries({"class": city, "fold": st.integers(1, 10).map(str)}),
    ),
    "wham": st.tuples(
        st.builds("{}/{}.wav".format, part, few),
        st.fixed_dictionaries({"File ID": few.map(str), "Location ID": st.sampled_from("xyz")}),
    ),
    "slr28": st.tuples(
        st.one_of(
            st.builds("pointsource_noises/noise-free-sound-{:04d}.wav".format, few),
            st.builds("real_rirs_isotropic_noises/RVB2014_type1_noise_largeroom{}_{}.wav".format, few, few),
        ),
        st.none(),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_recording_is_in_two_splits(layout, data):
    named = dict(data.draw(st.lists(NAMED[layout], min_size=1, max_size=40)))
    clips = {name: clip for name, row in named.items() if (clip := LAYOUTS[layout].place(name, row))}
    split = data.draw(st.sampled_from(["file", "class", *(["official"] if layout in OFFICIAL else [])]))
    try:
        chosen = split_noise(clips, split, data.draw(st.sampled_from([0.25, 0.5, 1])))
    except (ConfigError, DataError):
        return  # too few recordings or classes
    assert set(chosen) == set(clips)
    splits_of = {}
    for name, where in chosen.items():
        splits_of.setdefault(clips[name].recording, set()).add(where)
    assert all(len(splits) == 1 for splits in splits_of.values())


sizes = st.sampled_from(["small", "large"])
room_names = st.one_of(
    st.builds("simulated_rirs/{}room/Room{:03d}/Room{:03d}-{:05d}".format, sizes, few, few, few),
    st.builds("RVB2014_type{}_rir_{}room{}_far_angla".format, few, sizes, few),
    st.builds("{}/{}".format, city, few),
)  # fmt: skip


@given(st.sets(room_names, min_size=3))
def test_no_room_is_in_two_splits(names):
    rooms = {name: room_of(name)[0] for name in names}
    split_of = rank_split(rooms.values())
    assert set(split_of) == set(rooms.values()) and (len(split_of) < 3 or set(split_of.values()) == set(SPLITS))


@given(st.dictionaries(st.text(max_size=4), st.sampled_from("abc"), max_size=40), st.integers(0, 40))
def test_any_beginning_is_spread_over_the_classes(labels, n):
    ordered = in_turn(labels)
    assert sorted(ordered) == sorted(labels) and ordered == in_turn(dict(reversed(labels.items())))
    counts = {label: [labels[name] for name in ordered[:n]].count(label) for label in set(labels.values())}
    for label, count in counts.items():
        all_of_it = list(labels.values()).count(label)
        assert count >= min(all_of_it, max(counts.values()) - 1)


# ---- wrong and half-downloaded folders ----


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "folder"])
def test_another_folder_is_answered_with_what_is_expected_and_found(sets, layout):
    with pytest.raises(DataError) as refused:
        find_noise(sets / "folder", layout)
    assert LAYOUTS[layout].expects in str(refused.value) and "has dog/, rain/" in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    with pytest.raises(DataError, match=r"no such folder.*noise\.folder"):
        find_noise(sets / "nowhere", layout)


@pytest.mark.parametrize(
    "layout, gone, message",
    [
        ("demand", ["NFIELD/ch01.wav", "TMETRO/ch01.wav"], "missing: NFIELD/ch01.wav, TMETRO/ch01.wav"),
        ("esc50", ["meta/esc50.csv"], "does not look like esc50"),
        ("esc50", ["audio/5-5000-A-0.wav"], "1 of the 30 files in its table, such as 5-5000-A-0.wav"),
        ("urbansound8k", ["metadata/UrbanSound8K.csv"], "does not look like urbansound8k"),
        ("urbansound8k", ["audio/fold3", "audio/fold10"], "missing: fold3, fold10, 16 of the 80 files"),
        ("wham", ["wham_noise/tt"], "missing: tt or its table, 4 of the 15 files"),
        ("wham", ["wham_noise/metadata/noise_meta_cv.csv"], "missing: cv or its table"),
        ("slr28", ["RIRS_NOISES/pointsource_noises"], "missing: pointsource_noises/"),
        ("slr28", ["RIRS_NOISES/real_rirs_isotropic_noises"], "missing: isotropic noises"),
    ],
)
def test_half_a_download_is_answered_with_what_is_missing(sets, layout, gone, message, tmp_path):
    folder = copied(sets, layout, tmp_path)
    for name in gone:
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    with pytest.raises(DataError) as refused:
        find_noise(folder, layout)
    assert message in str(refused.value) and LAYOUTS[layout].expects in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_musan_without_its_noise_says_what_there_is(sets, tmp_path):
    folder = copied(sets, "musan", tmp_path)
    shutil.rmtree(folder / "noise")
    with pytest.raises(ConfigError, match=r"no class noise; it has music, speech"):
        find_noise(folder, "musan")


@pytest.mark.parametrize(
    "layout, table, columns",
    [("esc50", "meta/esc50.csv", "filename, category"),
     ("urbansound8k", "metadata/UrbanSound8K.csv", "slice_file_name, fold, class"),
     ("wham", "wham_noise/metadata/noise_meta_cv.csv", "utterance_id, File ID, Location ID")],
)  # fmt: skip
def test_a_table_without_its_columns_is_named(sets, tmp_path, layout, table, columns):
    folder = copied(sets, layout, tmp_path)
    for text in ("a,b\n1,2\n", columns.partition(",")[0] + "\nx.wav\n", columns.replace(", ", ",") + "\nx.wav\n"):
        (folder / table).write_text(text)
        with pytest.raises(DataError, match=f"{table} cannot be read as a table with the columns {columns}"):
            find_noise(folder, layout)


def test_of_many_files_in_a_wrong_folder_some_are_named(sets):
    with pytest.raises(DataError, match=r"this folder has (\S+, ){3}\S+ and \d+ more$"):
        find_noise(sets / "slr28/RIRS_NOISES/real_rirs_isotropic_noises", "esc50")


@needs_data
def test_real_esc50_in_a_folder_a_class():
    clips = find_noise(DATA / "noise/esc50", "esc50")
    assert len(clips) == 304 and len(labels_of(clips)) == 40
    with pytest.raises(DataError, match="nothing of the published part for test"):
        split_noise(clips, "official")  # these are clips of folds 2 to 4
    assert set(split_noise(clips).values()) == set(SPLITS)
