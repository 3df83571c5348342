"""What a corpus and a model must have in common."""

from types import SimpleNamespace

import numpy as np
import pytest

from rkd.assemble import check_language
from rkd.data.store import StoreWriter
from rkd.errors import DataError


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
