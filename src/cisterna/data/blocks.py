"""Blocks of tokens for continued pre-training, cut from a tokenized corpus without padding.

Positions restart at each document, and the models' attention does not cross a document boundary (transformers finds the
boundary by the restarted positions); no loss is taken for a document's first token.
"""

from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from cisterna.errors import UserError


class Blocks(Dataset):
    """Blocks of `size` tokens of a tokenized corpus (`cisterna.data.tokenized`); the rest at its end is left out.

    An item is a dict of int64 arrays of shape (size,): `input_ids`, `position_ids` (0 at the start of each document and
    of the block), `labels` (-100 at the first token of each document).
    """

    def __init__(self, folder: Path, size: int, part: str = "train") -> None:
        prefix = "" if part == "train" else "heldout_"
        self.stream = np.load(folder / f"{part}.npy", mmap_mode="r")
        self.starts = np.load(folder / f"{prefix}starts.npy", mmap_mode="r")
        self.size = size
        if len(self.stream) < size:
            raise UserError(
                f"{folder}: {len(self.stream)} {part} tokens do not fill one block of {size}; use a smaller block_size"
            )

    def __len__(self) -> int:
        return len(self.stream) // self.size

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        begin = index * self.size
        token_ids = np.asarray(self.stream[begin : begin + self.size], dtype=np.int64)
        low, high = np.searchsorted(self.starts, [begin, begin + self.size])
        starts = np.asarray(self.starts[low:high]) - begin
        origin = np.zeros(self.size, dtype=np.int64)
        origin[starts] = starts
        labels = token_ids.copy()
        labels[starts] = -100
        labels[0] = -100
        positions = np.arange(self.size, dtype=np.int64) - np.maximum.accumulate(origin)
        return {"input_ids": token_ids, "position_ids": positions, "labels": labels}
