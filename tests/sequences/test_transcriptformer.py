"""TranscriptFormer: the adapter gives what the package's own `transcriptformer inference` gives, on a small network.

The package is optional (docs/encoders.md). Its command needs Scanpy, of which it uses one function, AnnData's reader of
files: where Scanpy is not installed, a module with that function stands in for it. All the rest is the package's own.
"""

import contextlib
import importlib.util
import json
import sys
import types

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from cisterna import cli
from cisterna.data import splits
from cisterna.errors import UserError
from cisterna.evaluation.evaluate import evaluate
from cisterna.sequences import encoders, feature_bank, precomputed
from cisterna.sequences.encoders import transcriptformer as adapter
from runs import SOLVE, Run

CPU = torch.device("cpu")
GENES = [f"ENSG{number:05}" for number in range(20)]  # the last five are not in the vocabulary
MODEL = {
    "log_counts_eps": 1e-6, "num_heads": 2, "num_layers": 2, "model_dim": 32, "embed_dim": 16, "dropout": 0.1,
    "activation": "gelu", "attn_bias": False, "fw_bias": False, "mu_link_fn": "softmax", "softcap": 10, "seq_len": 7,
    "aux_len": 1, "block_len": 8, "gene_head_hidden_dim": 16,
}  # fmt: skip
DATA = {
    "aux_vocab_path": None, "pin_memory": False, "aux_cols": "assay", "gene_col_name": "ensembl_id", "clip_counts": 30,
    "filter_to_vocabs": True, "filter_outliers": 0.0, "pad_zeros": True, "normalize_to_scale": 0, "n_data_workers": 0,
    "sort_genes": False, "randomize_genes": False, "min_expressed_genes": 0, "gene_pad_token": "[PAD]",
    "aux_pad_token": "unknown", "esm2_mappings": ["human_gene.h5"], "esm2_mappings_path": None,
    "special_tokens": ["unknown", "[START]", "[END]", "[RD]", "[CELL]", "[PAD]", "[MASK]"],
}  # fmt: skip
READING = {"per": "example", "storage": "float32", "batch_size": 3}


class Config(dict):
    """What the package reads of OmegaConf: keys as attributes."""

    def __getattr__(self, name):
        if name not in self:
            raise AttributeError(name)
        return self[name]


def checkpoint(folder, **data):
    """A folder as `transcriptformer download` makes it, with a small random network of the package's own class."""
    from transcriptformer.data.dataclasses import DataConfig, InferenceConfig, LossConfig, ModelConfig
    from transcriptformer.model.model import Transcriptformer
    from transcriptformer.tokenizer.vocab import construct_gene_embeddings
    from transcriptformer.utils.utils import save_as_hdf5

    (folder / "vocabs").mkdir(parents=True)
    random = np.random.default_rng(1)
    embeddings = {gene: random.normal(size=12) for gene in GENES[:15]}
    save_as_hdf5(embeddings, folder / "vocabs" / "human_gene.h5")
    words = {"unknown": 0, "10x 3' v3": 1, "Smart-seq2": 2}
    (folder / "vocabs" / "assay_vocab.json").write_text(json.dumps(words))
    vocabulary, matrix = construct_gene_embeddings([str(folder / "vocabs" / "human_gene.h5")], DATA["special_tokens"])
    torch.manual_seed(0)
    made = DATA | data
    columns = made["aux_cols"]
    module = Transcriptformer(
        DataConfig(**made),
        ModelConfig(**MODEL, compile_block_mask=False),
        LossConfig(gene_id_loss_weight=1.0),
        InferenceConfig(["embeddings"], 4, [], None, None, None),
        gene_vocab_dict=vocabulary,
        aux_vocab_dict={"assay": words} if columns else None,
        emb_matrix=torch.tensor(matrix),
    )
    for parameter in module.parameters():  # so that cells differ by much
        parameter.data += 0.3 * torch.randn_like(parameter)
    torch.save(module.state_dict(), folder / "model_weights.pt")
    losses = {"gene_id_loss_weight": 1.0, "softplus_approx": True}
    config = {"model_config": MODEL, "data_config": made, "loss_config": losses}
    (folder / "config.json").write_text(json.dumps({"model": config | {"_target_": "ignored"}}))
    return folder


def cells(path, form=np.asarray, count=11, **changes):
    """Counts of 20 genes, of which more than seven are expressed in most cells; some are above 30."""
    random = np.random.default_rng(2)
    values = random.negative_binomial(1, 0.1, (count, len(GENES))).astype(np.float32)
    obs = pd.DataFrame(
        {"assay": ["10x 3' v3", "Smart-seq2", "other"] * 4, "kind": ["a", "b"] * 6, "donor": list("uvw") * 4},
        index=[f"cell-{row}" for row in range(12)],
    )[:count]
    made = anndata.AnnData(form(values), obs=obs)
    made.var_names = [f"name{number}" for number in range(len(GENES))]
    made.var["ensembl_id"] = [f"{gene}.{number}" for number, gene in enumerate(GENES)]
    for part, change in changes.items():
        change(getattr(made, part), made)
    made.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def package():
    reason = "the package transcriptformer is not installed (docs/encoders.md)"
    return pytest.importorskip("transcriptformer.model.model", reason=reason, exc_type=ImportError)


@pytest.fixture(scope="module")
def folder(package, tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("tf") / "small")


def load(folder, batch_size=3, **spec):
    return adapter.load({"pretrained": str(folder), "package": "transcriptformer"} | spec, batch_size, CPU)


def embedded(path, network):
    file = adapter.CellFile(path, network)
    return torch.stack(list(file.embeddings(range(len(file.ids))))).numpy()


def by_the_package(folder, path, tmp_path, batch_size=4):
    """What the package's command computes: its own reading, batching and network."""
    config = json.loads((folder / "config.json").read_text())["model"]
    config["data_config"] |= {"use_raw": "auto", "remove_duplicate_genes": False}
    config["data_config"] |= {"aux_vocab_path": str(folder / "vocabs"), "esm2_mappings_path": str(folder / "vocabs")}
    config["model_config"] |= {"compile_block_mask": False}
    config["inference_config"] = {
        "batch_size": batch_size, "output_keys": ["embeddings"], "obs_keys": ["all"], "precision": "32",
        "load_checkpoint": str(folder / "model_weights.pt"), "pretrained_embedding": None, "emb_type": "cell",
        "num_gpus": 1, "device": "cpu",
    }  # fmt: skip
    nested = Config(model=Config({key: Config(value) for key, value in config.items() if isinstance(value, dict)}))
    precision = torch.get_float32_matmul_precision()
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(tmp_path):  # it writes a folder of logs
        if importlib.util.find_spec("scanpy") is None:
            stand_in = types.ModuleType("scanpy")
            stand_in.read_h5ad = anndata.read_h5ad
            patch.setitem(sys.modules, "scanpy", stand_in)
        from transcriptformer.model.inference import run_inference

        found = run_inference(nested, data_files=[str(path)])
    torch.set_float32_matmul_precision(precision)
    return found


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix], ids=["dense", "csr", "csc"])
def test_embeddings_are_those_of_the_packages_command(folder, tmp_path, form):
    path = cells(tmp_path / "cells.h5ad", form)
    expected = by_the_package(folder, path, tmp_path)
    found = embedded(path, load(folder))
    assert found.shape == (11, MODEL["embed_dim"])
    assert np.abs(found[:, None] - found[None]).max(axis=2)[~np.eye(11, dtype=bool)].min() > 1e-2  # cells differ
    np.testing.assert_allclose(found, expected.obsm["embeddings"], rtol=1e-4, atol=1e-5)
    assert list(expected.obs_names) == [str(row) for row in range(11)]  # as docs/encoders.md warns


def test_what_the_packages_command_writes_is_read_as_precomputed_features_by_a_column_of_obs(folder, tmp_path):
    """The way of docs/encoders.md: names of cells are put into a column, because the command drops obs_names."""

    def keep_names(obs, made):
        obs["cell"] = made.obs_names

    made = by_the_package(folder, cells(tmp_path / "cells.h5ad", obs=keep_names), tmp_path)
    made.write_h5ad(tmp_path / "embeddings.h5ad")
    table = precomputed.FeatureTable([tmp_path / "embeddings.h5ad"], "embeddings", "cell")
    ((name, rows),) = table.read({"cell-7": 0}, {"per": "example", "pool": None, "storage": "float32"})
    assert name == "cell-7"
    np.testing.assert_array_equal(rows.numpy(), made.obsm["embeddings"][[7]])
    with pytest.raises(UserError, match="name no cell"):
        precomputed.FeatureTable([tmp_path / "embeddings.h5ad"], "embeddings", None)


def test_raw_counts_are_read_where_there_are_some(folder, tmp_path):
    def put_into_raw(_, made):
        made.raw = made.copy()
        made.X = np.log1p(made.X)

    path, plain = cells(tmp_path / "raw.h5ad", X=put_into_raw), cells(tmp_path / "plain.h5ad")
    np.testing.assert_array_equal(embedded(path, load(folder)), embedded(plain, load(folder)))


def test_counts_may_be_a_layer_and_genes_any_column_of_var(folder, tmp_path):
    def move(_, made):
        made.layers["counts"] = made.X.copy()
        made.X = np.log1p(made.X)
        made.var["gene"] = made.var.pop("ensembl_id")

    path, plain = cells(tmp_path / "layer.h5ad", X=move), cells(tmp_path / "plain.h5ad")
    file = adapter.CellFile(path, load(folder), "counts", "gene")
    found = torch.stack(list(file.embeddings(range(11)))).numpy()
    np.testing.assert_array_equal(found, embedded(plain, load(folder)))
    with pytest.raises(UserError, match="no layer 'raw'"):
        adapter.CellFile(path, load(folder), "raw")
    with pytest.raises(UserError, match="no column 'id' in var"):
        adapter.CellFile(path, load(folder), "counts", "id")


def test_a_model_without_columns_of_obs(package, tmp_path):
    folder = checkpoint(tmp_path / "small", aux_cols=None)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["model_config"] |= {"aux_len": 0, "seq_len": 8}
    (folder / "config.json").write_text(json.dumps(config))
    path = cells(tmp_path / "cells.h5ad", obs=lambda obs, made: obs.pop("assay"))
    np.testing.assert_allclose(
        embedded(path, load(folder)), by_the_package(folder, path, tmp_path).obsm["embeddings"], rtol=1e-4, atol=1e-5
    )


def test_the_package_changes_no_setting_of_the_process(folder):
    precision = torch.get_float32_matmul_precision()
    load(folder)
    assert torch.get_float32_matmul_precision() == precision


def set_value(value):
    def change(_, made):
        made.X[4, 2] = value

    return change


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"X": set_value(0.5)}, "cell 'cell-4': X has values that are no counts"),
        ({"X": set_value(-1.0)}, "cell 'cell-4': X has values that are no counts"),
        ({"X": set_value(np.nan)}, "cell 'cell-4': X has values that are no counts"),
        ({"obs": lambda obs, made: obs.pop("assay")}, "no column 'assay' in obs"),
        ({"var": lambda var, made: var.pop("ensembl_id")}, "are not in the vocabulary of"),
        (
            {"var": lambda var, made: var.__setitem__("ensembl_id", [GENES[0]] * 20)},
            r"genes of var \(ensembl_id\) are there twice",
        ),
    ],
)
def test_cells_that_cannot_be_read_are_refused(folder, tmp_path, changes, message):
    path = cells(tmp_path / "cells.h5ad", **changes)
    with pytest.raises(UserError, match=message):
        embedded(path, load(folder))


def test_a_cell_without_a_known_gene_is_refused(folder, tmp_path):
    def empty(_, made):
        made.X[3, :15] = 0

    with pytest.raises(UserError, match="cell 'cell-3' expresses no gene of the vocabulary"):
        embedded(cells(tmp_path / "cells.h5ad", X=empty), load(folder))


def replaced(text, other):
    return lambda path: path.write_text(path.read_text().replace(text, other))


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("model_weights.pt", lambda path: path.unlink(), "no model_weights.pt; expected a folder as"),
        ("config.json", lambda path: path.write_text("{}"), "not the configuration of a TranscriptFormer"),
        ("config.json", replaced("human_gene.h5", "g.pkl"), "a pickle could run code"),
        ("model_weights.pt", lambda path: torch.save({"a": torch.ones(1)}, path), "cannot be loaded"),
        ("config.json", replaced('"pad_zeros": true', '"pad_zeros": false'), "pad_zeros is false"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_refused(package, tmp_path, part, change, message):
    folder = checkpoint(tmp_path / "broken")
    change(folder / part)
    with pytest.raises(UserError, match=message):
        load(folder)


def test_without_the_package_one_line_says_how_to_install_it(monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.startswith("transcriptformer")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transcriptformer", None)
    with pytest.raises(UserError, match=r"pip install --no-deps transcriptformer==0\.6\.1"):
        load(tmp_path)


# --- In a task ---


@pytest.fixture
def task(folder, tmp_path):
    """The data of a task, and the encoder as `cisterna encoder` publishes it."""
    path = cells(tmp_path / "cells.h5ad", count=12)
    options = {"label": "kind", "group": "donor", "genes": 20, "question": "Kind?", "layer": None, "names": None}
    spec = {"adapter": "cells", "file": str(path), "options": options | {"sample": None, "reasoning": None}}
    splits.prepare("blood", spec | {"ood": ["w"], "train": 4, "validation": 1, "id": 2}, 0, tmp_path / "data")
    encoder = tmp_path / "encoders" / "tf" / "checkpoint"
    spec = {"pretrained": str(folder), "package": "transcriptformer", "dtype": "auto"}
    words = ["encoder", "--spec", json.dumps(spec), "--work", str(tmp_path / ".w"), "--output", str(encoder)]
    assert cli.main(words) == 0
    return path, tmp_path / "data", encoder


def test_a_bank_has_the_embedding_of_each_cell_and_resumes_at_a_shard(folder, task, tmp_path, monkeypatch):
    path, data, encoder = task
    monkeypatch.setattr(feature_bank, "CELLS", 4)
    with monkeypatch.context() as patch:  # killed after the first shard
        patch.setattr(feature_bank.shutdown, "requested", iter([False] * 5 + [True]).__next__)
        with pytest.raises(feature_bank.shutdown.Stopped, match="by SIGTERM after 6 of 11 examples"):
            feature_bank.build_for_task(encoder, data, READING, tmp_path / ".work", tmp_path / "bank")
    first = (tmp_path / ".work" / "features-00000.safetensors").stat().st_mtime_ns
    feature_bank.build_for_task(encoder, data, READING, tmp_path / ".work", tmp_path / "bank")
    bank = feature_bank.Bank(tmp_path / "bank")
    assert len(list((tmp_path / "bank").glob("*.safetensors"))) == 3
    assert (tmp_path / "bank" / "features-00000.safetensors").stat().st_mtime_ns == first
    expected = dict(zip(anndata.read_h5ad(path).obs_names, embedded(path, load(folder)), strict=True))
    for split in ("train", "validation", "id", "ood"):
        frame = pd.read_parquet(data / f"{split}.parquet")
        for name, residues in precomputed.wanted(frame["id"], frame["segments"], ()).items():
            row, count = bank.place(name, residues)
            assert count == 1
            np.testing.assert_allclose(bank.rows(torch.tensor([row]))[0].numpy(), expected[name], rtol=1e-4, atol=1e-5)


def test_a_model_of_embeddings_answers_cells_of_a_file_as_it_answers_those_of_the_bank(base, task, tmp_path):
    path, data, encoder = task
    feature_bank.build_for_task(encoder, data, READING, tmp_path / ".work", tmp_path / "bank")
    reads = {"sequences": "features", "bank": tmp_path / "bank"}
    model = Run(
        "sft", base, data, tmp_path / "model", SOLVE | {"per_device_train_batch_size": 2}, 3, reads=reads
    ).here()
    options = {"max_new_tokens": 12, "batch_size": 20, "bootstrap": 10}
    with pytest.raises(UserError, match="there is no file with their counts"):
        evaluate(model.output, data, tmp_path / "eval", options)
    evaluate(model.output, data, tmp_path / "eval", options, tmp_path / "bank")
    expected = pd.concat([pd.read_parquet(tmp_path / "eval" / f"{split}.parquet") for split in ("id", "ood")])
    words = ["predict", str(model.output), "--input", str(path), "--output", str(tmp_path / "answers.parquet")]
    assert cli.main([*words, "--options", json.dumps(options)]) == 0
    found = pd.read_parquet(tmp_path / "answers.parquet").set_index("id")["output"]
    assert found[expected["id"]].tolist() == expected["output"].tolist()


def test_another_file_of_cells_is_refused(task, tmp_path):
    path, data, encoder = task
    cells(path, count=12, X=set_value(7.0))
    with pytest.raises(UserError, match="not the file that the data of blood were made from"):
        feature_bank.build_for_task(encoder, data, READING, tmp_path / ".work", tmp_path / "bank")


def test_a_changed_vocabulary_is_refused(folder, task, tmp_path):
    _, data, encoder = task
    words = folder / "vocabs" / "assay_vocab.json"
    before = words.read_text()
    try:
        words.write_text(before.replace("Smart-seq2", "Smart-seq3"))
        with pytest.raises(UserError, match="its files have changed since"):
            feature_bank.build_for_task(encoder, data, READING, tmp_path / ".work", tmp_path / "bank")
    finally:
        words.write_text(before)


def test_new_cells_are_read_from_their_own_file(folder, task, tmp_path):
    path, _, encoder = task
    source = precomputed.FileFeatures(encoder, READING, (), [path])
    source.prepare({"cell-3": 1, "cell-8": 1})
    row, _ = source.place("cell-8", 1)
    np.testing.assert_allclose(
        source.rows(torch.tensor([row]))[0].numpy(), embedded(path, load(folder))[8], rtol=1e-4, atol=1e-5
    )
    assert source.width == MODEL["embed_dim"]
    with pytest.raises(UserError, match="there is no file with their counts"):
        precomputed.FileFeatures(encoder, READING, ())
    with pytest.raises(UserError, match="reads cells, not sequences"):
        encoders.load(encoder, -1)
