"""TranscriptFormer, by the Chan Zuckerberg Initiative's package `transcriptformer` (docs/encoders.md: installation).

    transcriptformer: {pretrained: checkpoints/tf_sapiens, package: transcriptformer}

`pretrained` is a folder as `transcriptformer download` makes it: `config.json`, `model_weights.pt` and `vocabs/`. The
network reads the counts of a cell, and gives one row: the mean of its outputs over all positions, which is what
`transcriptformer inference` calls the cell embedding. What it reads are the defaults of that command: genes of the
vocabulary with a count above 0, in the order of the file, at most `seq_len` of them, counts of at most 30.

It reads `.h5ad` files: the layer `counts`, or `raw.X`, or X where there is none, which must be whole numbers. Gene ids
(Ensembl's, without versions) are the column `genes` of `var`, or the first of GENE_COLUMNS, or else its index.

Not for contextual gene embeddings, other species' gene embeddings, or training.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse

from cisterna.errors import UserError, one_line

INSTALL = "pip install -e '.[transcriptformer]' && pip install --no-deps transcriptformer==0.6.1"
GENE_COLUMNS = ("ensembl_id", "gene_ids", "feature_id")  # the package's, Scanpy's for 10x data, CELLxGENE's
CLIP = 30  # the largest count: the default of `transcriptformer inference`, as in the training of the models
PARTS = ("config.json", "model_weights.pt", "vocabs")


class CellNetwork:
    """A TranscriptFormer that is loaded: `module` is a `transcriptformer.model.model.Transcriptformer`."""

    def __init__(self, name: str, module: Any, device: torch.device, batch_size: int, mixed: bool) -> None:
        self.name, self.module, self.device, self.batch_size, self.mixed = name, module, device, batch_size, mixed
        self.vocabulary: Mapping[str, int] = module.gene_vocab.vocab_dict
        self.columns: Mapping[str, Mapping[str, int]] = module.aux_vocab_dict or {}
        self.longest = int(module.model_config.seq_len)

    def embed(self, cells: Sequence[tuple[np.ndarray, np.ndarray]], more: Sequence[Mapping[str, str]]) -> torch.Tensor:
        """Embeddings of at most `batch_size` cells: (cells, width) in float32, on the CPU.

        A cell is the tokens of its genes and their counts; `more` has the values of its columns of `obs`, by name.
        """
        from transcriptformer.data.dataclasses import BatchData

        tokens = torch.full((len(cells), self.longest), self.module.gene_vocab.pad_idx, dtype=torch.int64)
        counts = torch.zeros(len(cells), self.longest)
        for row, (genes, values) in enumerate(cells):
            kept = min(len(genes), self.longest)
            tokens[row, :kept] = torch.from_numpy(genes[:kept])
            counts[row, :kept] = torch.from_numpy(np.minimum(values[:kept], CLIP).astype(np.float32))
        extra = None
        if self.columns:
            ids = [[words.get(row[name], words["unknown"]) for name, words in self.columns.items()] for row in more]
            extra = torch.tensor(ids, device=self.device)
        half = torch.autocast(self.device.type, torch.float16) if self.mixed else contextlib.nullcontext()
        with torch.inference_mode(), half:
            found = self.module.inference(BatchData(counts.to(self.device), tokens.to(self.device), extra))
        return found["embeddings"].float().cpu()


def load(spec: Mapping[str, Any], batch_size: int, device: torch.device) -> CellNetwork:
    """The network of a folder. `dtype` auto is the package's mixed precision on a GPU, and float32 on a CPU.

    Raises UserError if the package is missing, if the folder is not what `transcriptformer download` makes, or if the
    weights do not fit.
    """
    folder = Path(str(spec["pretrained"]))
    precision = torch.get_float32_matmul_precision()
    try:
        from transcriptformer.data.dataclasses import DataConfig, InferenceConfig, LossConfig, ModelConfig
        from transcriptformer.model.model import Transcriptformer
        from transcriptformer.tokenizer.vocab import construct_gene_embeddings, open_vocabs
    except ImportError as error:
        raise UserError(
            f"encoder {folder}: the package transcriptformer or one that it needs is not installed ({error}). Install "
            f"it with: {INSTALL}"
        ) from None
    finally:
        torch.set_float32_matmul_precision(precision)  # the package changes it for the whole process
    if missing := [part for part in PARTS if not (folder / part).exists()]:
        raise UserError(
            f"encoder {folder}: no {', '.join(missing)}; expected a folder as `transcriptformer download` makes it"
        )
    try:
        config = json.loads((folder / "config.json").read_text())["model"]
        data = config["data_config"]
        made = {
            part: kind(**{key: value for key, value in config[part].items() if key in {f.name for f in fields(kind)}})
            for part, kind in (("model_config", ModelConfig), ("data_config", DataConfig), ("loss_config", LossConfig))
        }
        embeddings = [folder / "vocabs" / str(file) for file in data["esm2_mappings"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / 'config.json'}: not the configuration of a TranscriptFormer ({one_line(error)})"
        ) from None
    if not data["pad_zeros"]:
        raise UserError(f"{folder / 'config.json'}: pad_zeros is false; only models with pad_zeros: true can be read")
    if unsafe := [path for path in embeddings if path.suffix != ".h5"]:
        raise UserError(f"{unsafe[0]}: expected gene embeddings in .h5 files; a pickle could run code")
    made["data_config"].clip_counts = CLIP
    if device.type == "cpu":
        made["model_config"].compile_block_mask = False  # it would need a C++ compiler
    columns = data.get("aux_cols")
    columns = columns.split(",") if isinstance(columns, str) else columns
    try:
        vocabulary, matrix = construct_gene_embeddings(list(map(str, embeddings)), list(data["special_tokens"]))
        words = open_vocabs(str(folder / "vocabs"), list(columns)) if columns else None
        module = Transcriptformer(
            **made,
            inference_config=InferenceConfig(["embeddings"], batch_size, [], None, None, None),
            gene_vocab_dict=vocabulary,
            aux_vocab_dict=words,
            emb_matrix=torch.tensor(matrix),
        )
        module.load_state_dict(torch.load(folder / "model_weights.pt", map_location="cpu", weights_only=True))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"encoder {folder}: cannot be loaded. {one_line(error)}") from None
    mixed = device.type == "cuda" and spec.get("dtype", "auto") == "auto"
    return CellNetwork(str(folder), module.to(device).eval().requires_grad_(False), device, batch_size, mixed)


class CellFile:
    """The cells of an `.h5ad` file as a network reads them. Raises UserError for a file that it cannot read.

    `counts` is the layer with the counts, `genes` the column of `var` with the ids of the genes; None as above.
    """

    def __init__(self, path: Path, network: CellNetwork, counts: str | None = None, genes: str | None = None) -> None:
        import h5py
        from anndata.io import read_elem, sparse_dataset

        self.path, self.network = path, network
        try:
            with h5py.File(path, "r") as file:
                if not all(part in file and "_index" in file[part].attrs for part in ("obs", "var")):
                    raise UserError(f"{path}: not an .h5ad file as AnnData 0.7 and later write it")
                self.part = f"layers/{counts}" if counts else "raw/X" if "raw/X" in file else "X"
                if self.part not in file:
                    wanted = f"layer {counts!r}" if counts else "raw.X and no X"
                    raise UserError(f"{path}: no {wanted}; TranscriptFormer reads the counts of cells (key `counts`)")
                var = file["raw/var" if self.part == "raw/X" else "var"]
                self.ids = [str(name).strip() for name in read_elem(file["obs"][file["obs"].attrs["_index"]])]
                column = genes or next((name for name in GENE_COLUMNS if name in var), var.attrs["_index"])
                if column not in var:
                    raise UserError(f"{path}: no column {column!r} in var with the ids of the genes (key `genes`)")
                names = [str(gene).split(".")[0] for gene in read_elem(var[column])]
                self._columns = {name: self._values(file["obs"], name) for name in network.columns}
                stored = file[self.part]
                self._whole = None
                if not isinstance(stored, h5py.Dataset) and sparse_dataset(stored).format == "csc":
                    self._whole = sparse_dataset(stored).to_memory().tocsr()  # rows of it cannot be read alone
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read as .h5ad ({one_line(error)}). TranscriptFormer reads the counts of its cells."
            ) from error
        self._tokens = np.array([network.vocabulary.get(gene, -1) for gene in names], dtype=np.int64)
        known = [gene for gene, token in zip(names, self._tokens, strict=True) if token >= 0]
        where = f"{path}: genes of var ({column})"
        if not known:
            raise UserError(
                f"{where} are not in the vocabulary of {network.name}, such as {names[0]!r}. Expected Ensembl ids; "
                "name their column of var in `genes`."
            )
        if len(set(known)) != len(known):
            raise UserError(f"{where} are there twice, without their versions. Keep one of each.")
        print(f"{where}: {len(known)} of {len(names)} are in the vocabulary of {network.name}", flush=True)

    def _values(self, obs: Any, name: str) -> list[str]:
        from anndata.io import read_elem

        if name not in obs:
            raise UserError(
                f"{self.path}: no column {name!r} in obs, which {self.network.name} reads too. Add it; cells with the "
                "text `unknown` are read without it."
            )
        return list(map(str, read_elem(obs[name])))

    def embeddings(self, rows: Sequence[int]) -> Iterator[torch.Tensor]:
        """The embedding of each of some ascending rows: (width,) in float32."""
        size = self.network.batch_size
        for begin in range(0, len(rows), size):
            chosen = list(rows[begin : begin + size])
            counts = self._counts(chosen)
            cells = [self._cell(counts, place, self.ids[row]) for place, row in enumerate(chosen)]
            more = [{name: values[row] for name, values in self._columns.items()} for row in chosen]
            yield from self.network.embed(cells, more)

    def _counts(self, rows: list[int]) -> sparse.csr_matrix:
        import h5py
        from anndata.io import sparse_dataset

        if self._whole is not None:
            return self._whole[rows]
        with h5py.File(self.path, "r") as file:
            stored = file[self.part]
            if isinstance(stored, h5py.Dataset):
                return sparse.csr_matrix(stored[rows])
            return sparse.csr_matrix(sparse_dataset(stored)[rows])

    def _cell(self, counts: sparse.csr_matrix, place: int, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and counts of the genes of a cell, in the order of the file."""
        part = counts[place]
        part.sum_duplicates()
        values, columns = part.data, part.indices
        if not (np.isfinite(values) & (values >= 0) & (values == np.round(values))).all():
            raise UserError(
                f"{self.path}: cell {name!r}: {self.part} has values that are no counts. TranscriptFormer reads raw "
                "counts: name their layer in `counts`, or put them into raw.X, or into X of a file without raw."
            )
        kept = (values > 0) & (self._tokens[columns] >= 0)
        if not kept.any():
            raise UserError(f"{self.path}: cell {name!r} expresses no gene of the vocabulary of {self.network.name}.")
        return self._tokens[columns[kept]], values[kept]
