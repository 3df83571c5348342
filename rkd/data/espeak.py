"""Speech from eSpeak NG, in processes of its own.

eSpeak NG is GPL-3.0, so it is loaded only by ``python -m rkd.data.espeak``, never into the program that trains. Such a
worker reads a request a line from stdin, ``{"text", "voice", "rate_wpm", "pitch"}`` as JSON, and answers each on stdout
with a header (``<II``: 0 for audio or 1 for an error, then the number of bytes) and int16 PCM at 22,050 Hz or a
message.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import json
import os
import struct
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rkd.errors import ConfigError, ResourceError

if TYPE_CHECKING:
    import numpy as np

RATE_HZ = 22050
_HEADER = struct.Struct("<II")


@dataclass(frozen=True)
class Request:
    """One utterance to speak.

    Attributes:
        text: what to say.
        voice: accent and variant, such as ``en-us+f1`` or ``en-gb-scotland+m3``.
        rate_wpm: speaking rate in words a minute (80 to 450).
        pitch: base pitch, 0 to 100, 50 is the voice's own.
    """

    text: str
    voice: str
    rate_wpm: int = 175
    pitch: int = 50


def speak(request: Request) -> np.ndarray:
    """Speak a request; return int16 PCM ``(T,)`` at 22,050 Hz.

    The waveform depends on the request alone, not on what was spoken before it.

    Raises:
        ConfigError: a voice does not exist, or a text cannot be spoken.
        ResourceError: eSpeak NG cannot be started.
    """
    import numpy as np  # not above: the process that speaks forks for each request, and a small one forks faster

    process = _process()
    assert process.stdin and process.stdout
    with contextlib.suppress(BrokenPipeError):  # what follows says why it is gone
        process.stdin.write(json.dumps(asdict(request)).encode() + b"\n")
        process.stdin.flush()
    header = process.stdout.read(_HEADER.size)
    failed, n_bytes = _HEADER.unpack(header) if len(header) == _HEADER.size else (0, 0)
    answer = process.stdout.read(n_bytes)
    if len(header) < _HEADER.size or len(answer) < n_bytes:
        _process.cache_clear()
        raise ResourceError(
            f"the eSpeak NG process ended with code {process.wait()} at {request}; "
            "`python -c 'import espeakng_loader; espeakng_loader.load_library()'` shows whether the library loads here"
        )
    if failed:
        raise ConfigError(f"eSpeak NG cannot speak {request}: {answer.decode()}")
    return np.frombuffer(answer, dtype="<i2")


@functools.cache
def _process() -> subprocess.Popen:
    """Return this process's own eSpeak NG process, which ends when this one does and closes its stdin."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path[1:]])}
    process = subprocess.Popen(
        [sys.executable, "-m", "rkd.data.espeak"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    atexit.register(process.kill)
    return process


class _Library:
    """The few calls of ``speak_lib.h`` that speaking into memory takes. Only in a worker process."""

    _synchronous, _dont_exit = 2, 0x8000  # espeak_AUDIO_OUTPUT, options of espeak_Initialize
    _rate, _pitch = 1, 3  # espeak_PARAMETER
    _utf8, _by_character = 1, 1

    def __init__(self) -> None:
        import espeakng_loader

        data = Path(espeakng_loader.get_data_path())
        self._variants = {path.name for path in (data / "voices" / "!v").iterdir()}
        self._library: Any = ctypes.CDLL(str(espeakng_loader.get_library_path()))
        if self._library.espeak_Initialize(self._synchronous, 0, str(data.parent).encode(), self._dont_exit) != RATE_HZ:
            raise OSError(f"eSpeak NG does not start with its data in {data}")
        self._pcm = bytearray()
        callback_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = callback_type(self._collect)  # kept: the library holds only the address
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples, n_samples: int, events) -> int:
        if samples and n_samples > 0:
            self._pcm += ctypes.string_at(samples, 2 * n_samples)
        return 0  # go on

    def speak(self, text: str, voice: str, rate_wpm: int, pitch: int) -> bytes:
        library = self._library
        variant = voice.partition("+")[2]
        # An unknown variant is ignored by the library, which would give two names to one voice.
        if variant and variant not in self._variants:
            raise ValueError(f"there is no voice variant {variant!r}; there are {', '.join(sorted(self._variants))}")
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"there is no voice {voice!r}")
        library.espeak_SetParameter(self._rate, rate_wpm, 0)
        library.espeak_SetParameter(self._pitch, pitch, 0)
        library.espeak_ng_SetRandSeed(1)  # it starts with the time of day
        self._pcm.clear()
        content = text.encode() + b"\0"
        status = library.espeak_Synth(content, len(content), 0, self._by_character, 0, self._utf8, None, None)
        if status != 0:
            raise ValueError(f"espeak_Synth returned {status}")
        return bytes(self._pcm)


def main() -> None:
    """Answer requests until stdin ends.

    Each is spoken by a fork of the process as it was at the start: the library's oscillators and noise carry state from
    one utterance to the next, which neither its random seed nor starting it again resets.
    """
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever the library prints must not end up between the answers
    library = _Library()
    library.speak("one", "en-us", rate_wpm=175, pitch=50)  # reads the dictionary, once for all
    for line in sys.stdin.buffer:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                _answer(library, line, answers)
                status = 0
            finally:
                os._exit(status)  # no clean-up of what belongs to the parent
        if os.waitpid(child, 0)[1] != 0:
            sys.exit(1)


def _answer(library: _Library, line: bytes, answers: int) -> None:
    try:
        failed, answer = 0, library.speak(**json.loads(line))
    except ValueError as error:
        failed, answer = 1, str(error).encode()
    with os.fdopen(answers, "wb") as file:
        file.write(_HEADER.pack(failed, len(answer)) + answer)


if __name__ == "__main__":
    main()
