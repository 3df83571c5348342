"""Published layouts, made in small: what is where, and what a wrong folder is answered with."""

from collections import defaultdict

import pytest
from corpora import common_voice, librispeech, ljspeech, voicebank
from recordings import save

from rkd.data.corpus import write_store
from rkd.data.sources import Rejected, Utterance
from rkd.data.sources.corpora import CommonVoice, LibriSpeech, LJSpeech, VoiceBankDemand
from rkd.data.store import SPLITS
from rkd.errors import ConfigError, DataError


def splits(source):
    found = defaultdict(set)
    for one in source.utterances():
        if isinstance(one, Utterance):
            found[one.split].add(one.speaker)
    return dict(found)


@pytest.mark.parametrize("inner", ["", "LibriSpeech"])
def test_librispeech_official(tmp_path, inner):
    librispeech(tmp_path / inner)
    source = LibriSpeech(str(tmp_path))
    assert splits(source) == {"train": {"1", "2"}, "validation": {"11", "12"}, "test": {"21", "22"}}
    first = next(source.utterances())
    assert (first.id, first.text) == ("11-7-0000", "HELLO WORLD 0")  # parts by name: dev-clean comes first
    assert len(list(source.inputs())) == 18 + 6
    assert splits(LibriSpeech(str(tmp_path), parts=["dev-clean"], split="official")) == {"validation": {"11", "12"}}
    with pytest.raises(DataError, match="has no train-other-500; there are dev-clean, test-other, train-clean-100"):
        list(LibriSpeech(str(tmp_path), parts=["train-other-500"]).utterances())


def test_librispeech_without_all_parts_is_split_by_speaker(tmp_path):
    librispeech(tmp_path, parts=["train-clean-100", "train-other-500", "train-clean-360"], text=False)
    found = splits(LibriSpeech(str(tmp_path), fractions=(0.4, 0.3, 0.3)))
    speakers = [s for group in found.values() for s in group]
    assert len(speakers) == len(set(speakers)) == 6
    one_part = list(LibriSpeech(str(tmp_path / "train-clean-100")).utterances())
    assert {one.id for one in one_part} == {f"{s}-7-{n:04d}" for s in (1, 2) for n in range(3)}
    assert all(one.text is None for one in one_part)


def test_librispeech_half_downloaded(tmp_path, capsys):
    librispeech(tmp_path, parts=["train-clean-100"])
    for n in range(3):
        (tmp_path / "train-clean-100/2/7" / f"2-7-{n:04d}.flac").unlink()
    found = list(LibriSpeech(str(tmp_path)).utterances())
    assert [one for one in found if isinstance(one, Rejected)] == [
        Rejected(f"2-7-{n:04d}", "no such audio file") for n in range(3)
    ]
    assert "data.split=auto: by speaker, since there is no part for validation and test" in capsys.readouterr().err


def test_librispeech_texts_of_other_names(tmp_path, capsys):
    librispeech(tmp_path)
    for path in tmp_path.rglob("*.trans.txt"):
        path.write_text(path.read_text().replace("-7-", "_7_"))
    found = list(LibriSpeech(str(tmp_path)).utterances())
    assert all(one.text is None for one in found if isinstance(one, Utterance))
    said = capsys.readouterr().err
    assert "warning: none of the 18 lines in the *.trans.txt files" in said and "auto: official" in said


def test_librispeech_in_a_wrong_folder(tmp_path):
    save(tmp_path / "recordings" / "a.wav")
    with pytest.raises(DataError, match="no part of LibriSpeech in it, such as train-clean-100"):
        list(LibriSpeech(str(tmp_path)).inputs())


def test_ljspeech_keeps_quotation_marks_and_says_what_is_lost(tmp_path):
    ljspeech(tmp_path)
    found = list(LJSpeech(str(tmp_path)).utterances())
    assert isinstance(found[-1], Rejected) and found[-1].kind == "no such audio file"
    save(tmp_path / "wavs" / "extra.wav")
    *found, extra = LJSpeech(str(tmp_path)).utterances()
    assert extra == Rejected("extra", "not in metadata.csv")
    assert all(one.text == "Doctor Who" and one.speaker == "LJ" for one in found[:-1]) and len(found) == 31
    (tmp_path / "metadata.csv").unlink()
    with pytest.raises(DataError, match=r"no metadata\.csv"):
        list(LJSpeech(str(tmp_path)).inputs())


def test_ljspeech_takes_the_text_where_the_normalised_one_is_empty(tmp_path):
    save(tmp_path / "wavs" / "a.wav")
    (tmp_path / "metadata.csv").write_text('a|He said "no|\n')
    (one,) = LJSpeech(str(tmp_path)).utterances()
    assert one.text == 'He said "no'


def test_common_voice(tmp_path):
    common_voice(tmp_path / "tr")
    source = CommonVoice(str(tmp_path / "tr"))
    found = list(source.utterances())
    assert [(one.id, one.split, one.language) for one in found if isinstance(one, Utterance)] == [
        ("common_voice_a", "train", "tr"), ("common_voice_b", "train", "tr"), ("common_voice_c", "validation", "tr")
    ]  # fmt: skip
    assert found[0].text == '"Quoted, a' and len(found[0].read()[0]) > 3000
    assert [one.kind for one in found if isinstance(one, Rejected)] == ["no such audio file"]
    assert len(list(source.inputs())) == 3 + 3
    anew = splits(CommonVoice(str(tmp_path / "tr"), "speaker"))
    assert {s for group in anew.values() for s in group} == {f"speaker-{c}" for c in "abce"}
    with pytest.raises(DataError, match=rf"no train\.tsv, dev\.tsv, test\.tsv in it.*data\.path={tmp_path}/tr"):
        list(CommonVoice(str(tmp_path)).inputs())
    (tmp_path / "tr" / "clips").rename(tmp_path / "clips")
    with pytest.raises(DataError, match=r"tr: no clips/ in it"):
        list(source.inputs())
    (tmp_path / "clips").rename(tmp_path / "tr" / "clips")
    (tmp_path / "tr" / "dev.tsv").write_text("path\n")
    with pytest.raises(DataError, match=r"dev\.tsv: its first line lacks"):
        list(source.utterances())


def test_voicebank_demand(tmp_path):
    voicebank(tmp_path)
    source = VoiceBankDemand(str(tmp_path))
    assert splits(source) == {"train": {"p225"}, "validation": {"p226", "p287"}, "test": {"p232"}}
    assert {one.text for one in source.utterances()} == {"Please call Stella.\n"} and len(list(source.inputs())) == 8
    speakers = splits(VoiceBankDemand(str(tmp_path), "speaker", fractions=(0.4, 0.3, 0.3)))
    assert sum(map(len, speakers.values())) == 4
    with pytest.raises(DataError, match="no clean_trainset_28spk_wav or clean_testset_wav in it"):
        list(VoiceBankDemand(str(tmp_path / "testset_txt")).inputs())
    (tmp_path / "clean_testset_wav").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=f"{tmp_path.name}: no clean_testset_wav in it"):
        list(source.inputs())
    assert len(list(VoiceBankDemand(str(tmp_path), "hash").utterances())) == 3
    with pytest.raises(ConfigError, match="validation_speakers"):
        VoiceBankDemand("x", validation_speakers=[])


def test_real_ljspeech_and_librispeech(tmp_path, shared):
    for source in (LJSpeech(str(shared / "speech/ljspeech")), LibriSpeech(str(shared / "speech/librispeech"))):
        folder = tmp_path / type(source).__name__
        folder.mkdir()
        summary = write_store(source, folder, max_seconds=5)
        assert summary["has_text"] == isinstance(source, LJSpeech)
        assert set(summary["rejected"]) == {"too long"}
        assert all(summary["splits"][split]["utterances"] > 0 for split in SPLITS)
