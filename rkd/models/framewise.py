"""What CTC recognisers (Graves et al. 2006) share: a label or a blank at each step, and how labels are read off them.

Shapes: B batch, T samples, N encoder steps, L label tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rkd.errors import CheckpointError
from rkd.models.base import Stream, Streams
from rkd.tokenizer import Tokenizer, decode, load_tokenizer


class CTCRecogniser(nn.Module):
    """What all CTC recognisers share. The blank is the tokenizer's padding token.

    Provides the streams ``ctc_logits`` and ``hidden.encoder.<i>``, where layer 0 is the input of the first layer.
    """

    tokenizer: Tokenizer
    stride: int

    def streams(self, logits_BNV: Tensor, layers: Sequence[Tensor], steps_B: Tensor) -> Streams:
        """Return the streams of logits and of the layers' outputs ``(B, N, D)``, of which so many steps are valid."""
        hidden = {f"hidden.encoder.{i}": Stream(x_BND, steps_B, self.stride) for i, x_BND in enumerate(layers)}
        return {"ctc_logits": Stream(logits_BNV, steps_B, self.stride), **hidden}

    @torch.no_grad()
    def transcribe(self, waveform_BT: Tensor, lengths_B: Tensor, beams: int = 1) -> list[str]:
        """Return the transcripts of clips ``(B, T)``: the best path (``beams=1``), or prefix beam search."""
        return [decode(self.tokenizer, tokens) for tokens in self.write(waveform_BT, lengths_B, beams)]

    @torch.no_grad()
    def write(self, waveform_BT: Tensor, lengths_B: Tensor, beams: int = 1) -> list[list[int]]:
        """Return the label tokens of those transcripts."""
        no_labels_BL = torch.zeros(len(waveform_BT), 0, dtype=torch.long, device=waveform_BT.device)
        stream = self(waveform_BT, lengths_B, no_labels_BL)["ctc_logits"]
        return best_labels(stream, self.tokenizer.pad_token_id, beams)


class FramewiseCTC(CTCRecogniser):
    """A CTC recogniser of one of rkd's own shapes.

    A family sets ``encoder``, ``head``, ``stride``, ``width`` and ``depth``, and says what its layers give.
    """

    encoder: nn.Module
    head: nn.Module

    def __init__(self, tokenizer: Tokenizer, window_seconds: int, shape: dict[str, Any]):
        super().__init__()
        self.tokenizer = tokenizer
        self.window_seconds = window_seconds
        self.shape = shape

    def layers(self, waveform_BT: Tensor, lengths_B: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        """Return the layers' outputs ``(B, N, D)``, the last one for the head, and the valid steps ``(B,)``."""
        raise NotImplementedError

    def forward(
        self, waveform_BT: Tensor, lengths_B: Tensor, labels_BL: Tensor, before_BP: Tensor | None = None
    ) -> Streams:
        """Return the streams for clips ``(B, T)``; labels and the text before are not looked at."""
        layers, steps_B = self.layers(waveform_BT, lengths_B)
        return self.streams(self.head(layers[-1]), layers, steps_B)

    def save(self, folder: Path) -> None:
        """Write the weights and the tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path, card: dict[str, Any]) -> Self:
        """Load what ``save`` wrote.

        Raises:
            CheckpointError: the file is missing, damaged or of another shape.
        """
        model = cls(load_tokenizer(folder), card["window_seconds"], **card["shape"])
        try:
            model.load_state_dict(load_file(folder / "model.safetensors"))
        except Exception as error:
            raise CheckpointError(
                f"{folder} does not hold a readable {cls.__name__} model ({error}); rebuild it or name another folder"
            ) from error
        return model


def best_labels(stream: Stream, blank: int, beams: int) -> list[list[int]]:
    """Return the labels of CTC logits: of the best path (``beams=1``), or by prefix beam search."""
    log_probs_BNV = stream.values_BND.float().log_softmax(-1).cpu()
    clips = [row[:n] for row, n in zip(log_probs_BNV, stream.lengths_B.tolist(), strict=True)]
    if beams == 1:
        return [collapse(clip.argmax(-1).tolist(), blank) for clip in clips]
    return [prefix_beam_search(clip, blank, beams) for clip in clips]


def collapse(path: list[int], blank: int) -> list[int]:
    """Return the labels of a frame-wise path: repeats merged, blanks removed."""
    return [token for i, token in enumerate(path) if token != blank and (i == 0 or token != path[i - 1])]


def prefix_beam_search(log_probs_NV: Tensor, blank: int, beams: int) -> list[int]:
    """Return the labels of highest probability, summed over their alignments, among ``beams`` prefixes.

    Graves & Jaitly 2014, algorithm 1, in the log domain. A prefix's score is kept apart for paths that end in blank and
    those that do not, since only the former may repeat the last label.
    """
    minus_infinity = float("-inf")
    best: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, minus_infinity)}
    for frame_V in log_probs_NV.double():
        # No more than beams + 1 tokens can enter the beam from one prefix.
        top = torch.topk(frame_V, min(beams + 1, len(frame_V)))
        tokens = dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        tokens[blank] = float(frame_V[blank])
        nxt: dict[tuple[int, ...], tuple[float, float]] = {}

        def add(prefix: tuple[int, ...], blank_score: float, label_score: float, nxt: dict = nxt) -> None:
            b, n = nxt.get(prefix, (minus_infinity, minus_infinity))
            nxt[prefix] = (_logaddexp(b, blank_score), _logaddexp(n, label_score))

        for prefix, (b, n) in best.items():
            total = _logaddexp(b, n)
            add(prefix, total + tokens[blank], minus_infinity)
            if prefix:
                add(prefix, minus_infinity, n + float(frame_V[prefix[-1]]))
            for token, score in tokens.items():
                if token != blank:
                    start = b if prefix and token == prefix[-1] else total
                    add((*prefix, token), minus_infinity, start + score)
        best = dict(sorted(nxt.items(), key=lambda item: -_logaddexp(*item[1]))[:beams])
    return list(next(iter(best)))


def _logaddexp(a: float, b: float) -> float:
    if a == b == float("-inf"):
        return a
    high, low = max(a, b), min(a, b)
    return high + math.log1p(math.exp(low - high))
