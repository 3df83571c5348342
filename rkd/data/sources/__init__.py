"""Speech sources: what corpora hold, one utterance after another.

base      what a source is, splits, audio files under a folder
digits    spoken digit strings from a synthesiser, the embedded default
fsdd      digit strings joined from recordings of single digits
files     a folder of recordings, a manifest
corpora   LibriSpeech, LJ Speech, Common Voice, VoiceBank-DEMAND, as they are published
hub       data sets of the Hugging Face hub, or in its formats
mixture   several sources as one
"""

from rkd.data.sources.base import Rejected, Source, Utterance, assign, audio_files

__all__ = ["Rejected", "Source", "Utterance", "assign", "audio_files"]
