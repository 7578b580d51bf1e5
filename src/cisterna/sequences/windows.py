"""Windows: what an encoder reads of a sequence, and which stretch of it a prompt shows.

An encoder reads at most `flank` residues on each side of the residue of interest, such as a variant. A prompt shows one
or more stretches of residues between tags; the features of a stretch are computed in the context of its window.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from cisterna.sequences.tokenization import TAGGED


class Window(NamedTuple):
    """`text` is what the encoder reads; the prompt shows its residues `text[first:last]`."""

    text: str
    first: int
    last: int


def cut_window(sequence: str, start: int, stop: int, center: int | None, flank: int) -> Window:
    """The window of `sequence` around residue `center`, `flank` residues on each side, for a stretch start..stop.

    Positions count from 0. Without a center, the middle of the stretch is the center. Residues of the stretch outside
    the window are cut off, so that both flanks of a variant in a long sequence are kept.
    """
    if center is None:
        center = (start + stop) // 2
    low, high = max(0, center - flank), min(len(sequence), center + flank)
    return Window(sequence[low:high], max(start, low) - low, max(min(stop, high) - low, 0))


def window_of(stretch: str, segment: Mapping[str, Any], flank: int) -> Window:
    """The window of a stretch of a prompt; `segment` is its context, as `cisterna.tasks.segment` makes it."""
    start = segment["start"]
    return cut_window(segment["sequence"], start, start + len(stretch), segment["center"], flank)


def tagged_stretches(prompt: str) -> list[str]:
    """The tagged stretches of residues of a prompt, in order."""
    return [match[2] for match in TAGGED.finditer(prompt)]
