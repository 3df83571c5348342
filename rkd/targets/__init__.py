"""A teacher's outputs, computed once and read back by every student, seed and noise that follows.

rows      a row as it lies on disk
codebooks a hidden layer in a byte for several features
parts     the files of a folder of targets
streams   what a loss reads of stored logits
stores    finished folders, as the utterances of a corpus ask for them

Of a row of logits (a token, a frame) the k largest are kept, with what all others weigh at several temperatures: the
mass that the largest miss at T = 1 says nothing about T = 2; or tokens that are drawn from them at one temperature. Of
a vocabulary of no more than k all are kept, and so are the values of a hidden layer, in float16.

A folder of targets is about one stream of one teacher. It holds ``part-*.npy``, rows of fixed size that are
memory-mapped, and beside each ``part-*.json``: which utterances it has, in order, how many rows each, and checksums of
the rows and of what says what they are (``card.json``, ``codebooks.npy``). A part counts once its JSON file is there,
so that any number of processes can write, and an interrupted one goes on with what is missing.
"""

from rkd.targets.parts import BOOKS, CARD, Writer, fits, open_part, remove_damaged, written
from rkd.targets.rows import LEVELS, Card, pack, stored_rows, unpack_largest
from rkd.targets.stores import StoredTeacher, Targets, describe, open_books, read_card
from rkd.targets.streams import DrawnRows, SomeLogits, SomeRows, TopRows

__all__ = [
    "BOOKS",
    "CARD",
    "LEVELS",
    "Card",
    "DrawnRows",
    "SomeLogits",
    "SomeRows",
    "StoredTeacher",
    "Targets",
    "TopRows",
    "Writer",
    "describe",
    "fits",
    "open_books",
    "open_part",
    "pack",
    "read_card",
    "remove_damaged",
    "stored_rows",
    "unpack_largest",
    "written",
]
