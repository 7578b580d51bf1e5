"""A live encoder: the same interface as a feature bank, but the encoder runs whenever features are read."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from cisterna.sequences import encoders


class LiveEncoder:
    """Numbers the rows of a sequence when it is first located, and encodes the sequence when its rows are read."""

    def __init__(self, encoder: encoders.Encoder, modality: str, reading: Mapping[str, Any]) -> None:
        self.encoder, self.modality, self.reading = encoder, modality, reading
        self.width = encoder.width
        self._places: dict[str, tuple[int, int]] = {}
        self._texts: list[str] = []
        self._starts: list[int] = []
        self._end = 0

    def locate(self, text: str) -> tuple[int, int]:
        """First row and number of rows of a sequence."""
        if text not in self._places:
            count = encoders.rows(encoders.residues(text), self.reading["pool"])
            self._places[text] = (self._end, count)
            self._texts.append(text)
            self._starts.append(self._end)
            self._end += count
        return self._places[text]

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Features of rows: (n,) int64 to (n, width). Each sequence is encoded once a call, however many rows of it."""
        owners = np.searchsorted(self._starts, index.numpy(), side="right") - 1  # the sequence of each row
        numbers, positions = np.unique(owners, return_inverse=True)
        grad = bool(self.reading["trained"]) and torch.is_grad_enabled()
        texts = [self._texts[number] for number in numbers]
        features = encoders.encode(self.encoder, texts, self.modality, self.reading, grad)
        starts = np.cumsum([0, *map(len, features)])[:-1]
        offsets = index.numpy() - np.asarray(self._starts)[owners]
        joined = torch.cat(features)
        return joined[torch.from_numpy(starts[positions] + offsets).to(joined.device)]
