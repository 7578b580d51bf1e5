"""Precomputed features: every kind of file gives each example the rows of its id, and what does not fit is refused."""

import json

import anndata
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from cisterna import cli
from cisterna.artifacts import checkpoint
from cisterna.constants import SPLITS
from cisterna.data import splits
from cisterna.errors import UserError
from cisterna.evaluation.evaluate import evaluate
from cisterna.sequences import encoders, feature_bank, precomputed, tokenization
from cisterna.sequences.feature_files import open_file
from cisterna.sequences.prompt import encode_prompts
from cisterna.sequences.source import SequenceSource, source_of
from runs import SOLVE, Run

WIDTH = 5
IDS = ["c1", "c2", "c3", "c4"]
READING = {"per": "example", "pool": None, "storage": "float32"}
RESIDUES = READING | {"per": "residue"}
OPTIONS = {"max_new_tokens": 24, "batch_size": 32, "bootstrap": 100}


def matrix(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def h5ad(path, ids, values, **obsm):
    obs = pd.DataFrame({"cell": [f"x-{name}" for name in ids]}, index=list(ids))
    anndata.AnnData(obs=obs, obsm={"embeddings": values} | obsm).write_h5ad(path)
    return path


def parquet(path, ids, values):
    pq.write_table(pa.table({"id": list(ids), "vector": [row.tolist() for row in values]}), path)
    return path


def npz(path, ids, values):
    np.savez(path, ids=np.array(ids), embeddings=np.array(values))
    return path


def npz_of_ids(path, ids, values):
    np.savez(path, **dict(zip(ids, values, strict=True)))
    return path


def safetensors(path, ids, values):
    save_file({name: torch.tensor(row) for name, row in zip(ids, values, strict=True)}, path)
    return path


def hdf5(path, ids, values):
    with h5py.File(path, "w") as file:
        for name, row in zip(ids, values, strict=True):
            file[name] = row
    return path


def npy(path):
    with path.open("wb") as stream:
        np.save(stream, matrix(2, 3))
    return path


def nullable(path):
    obs = pd.DataFrame({"cell": pd.array([1, None], dtype="Int64")}, index=["a", "b"])
    anndata.AnnData(obs=obs, obsm={"embeddings": matrix(2, 3)}).write_h5ad(path)
    return path


WRITERS = {
    "h5ad": (h5ad, ".h5ad"),
    "parquet": (parquet, ".parquet"),
    "npz": (npz, ".npz"),
    "npz-ids": (npz_of_ids, ".npz"),
    "safetensors": (safetensors, ".safetensors"),
    "hdf5": (hdf5, ".h5"),
}


def written(form, folder, ids=IDS, values=None):
    writer, suffix = WRITERS[form]
    return writer(folder / f"features{suffix}", ids, matrix(len(ids), WIDTH) if values is None else values)


def read(path, needed, reading=READING, key=None, ids=None):
    table = precomputed.FeatureTable([path], key, ids)
    return dict(table.read(needed, reading))


@pytest.mark.parametrize("form", WRITERS)
def test_each_id_has_its_row_whatever_the_file_and_the_order(tmp_path, form):
    values = matrix(4, WIDTH)
    found = read(written(form, tmp_path, IDS, values), {"c3": 0, "c1": 0})
    assert set(found) == {"c1", "c3"}
    for name, rows in found.items():
        assert rows.dtype == torch.float32
        np.testing.assert_array_equal(rows.numpy(), values[[IDS.index(name)]])


@pytest.mark.parametrize("form", WRITERS)
def test_an_id_may_have_several_rows(tmp_path, form):
    values = matrix(4, 3, WIDTH)
    found = read(written(form, tmp_path, IDS, values), {"c2": 3}, RESIDUES)
    np.testing.assert_array_equal(found["c2"].numpy(), values[1])
    pooled = read(written(form, tmp_path, IDS, values), {"c2": 3}, RESIDUES | {"pool": 2})["c2"]
    np.testing.assert_allclose(pooled.numpy(), [values[1, :2].mean(axis=0), values[1, 2]], rtol=1e-6)


@pytest.mark.parametrize("form", ["parquet", "npz-ids", "safetensors", "hdf5"])
def test_sequences_of_different_lengths_have_different_numbers_of_rows(tmp_path, form):
    values = [matrix(length, WIDTH, seed=length) for length in (3, 1, 4, 2)]
    found = read(written(form, tmp_path, IDS, values), {"c1": 3, "c2": 1, "c3": 4, "c4": 2}, RESIDUES)
    assert all(np.array_equal(found[name].numpy(), rows) for name, rows in zip(IDS, values, strict=True))


def test_a_matrix_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("cisterna.sequences.feature_files.PIECE", 3 * WIDTH * 4)
    names, values = [f"c{row}" for row in range(40)], matrix(40, WIDTH)
    path = h5ad(tmp_path / "features.h5ad", names, values)
    chosen = {name: 0 for row, name in enumerate(names) if row % 5 in (1, 2) or row == 39}
    found = read(path, chosen)
    assert all(np.array_equal(found[name][0].numpy(), values[names.index(name)]) for name in chosen)


def test_tables_and_sparse_matrices_of_obsm_are_read(tmp_path):
    from scipy import sparse

    values = matrix(4, WIDTH)
    table = pd.DataFrame(values, index=IDS, columns=list("abcde"))
    path = h5ad(tmp_path / "features.h5ad", IDS, values, table=table, sparse=sparse.csr_matrix(values))
    for key in ("table", "sparse"):
        np.testing.assert_array_equal(read(path, {"c2": 0}, key=key)["c2"].numpy(), values[[1]])


def test_ids_may_be_a_column_of_obs(tmp_path):
    path = written("h5ad", tmp_path)
    np.testing.assert_array_equal(read(path, {"x-c3": 0}, ids="cell")["x-c3"].numpy(), matrix(4, WIDTH)[[2]])


def test_half_precision_tensors_are_read(tmp_path):
    save_file({"c1": torch.tensor([1.5, 2.5], dtype=torch.bfloat16)}, tmp_path / "f.safetensors")
    assert read(tmp_path / "f.safetensors", {"c1": 0})["c1"].tolist() == [[1.5, 2.5]]


@pytest.mark.parametrize("form", WRITERS)
def test_missing_ids_are_counted_and_named(tmp_path, form):
    with pytest.raises(
        UserError, match=r"no features of 2 of 3 ids \(first: 'd1', 'd2'\).*the files have 'c1', 'c2', 'c3'"
    ):
        read(written(form, tmp_path), {"d1": 0, "c1": 0, "d2": 0})


@pytest.mark.parametrize("form", ["h5ad", "parquet", "npz"])
def test_an_id_that_is_there_twice_is_refused(tmp_path, form):
    with pytest.raises(UserError, match=r"1 ids have more than one entry \(first: 'c1', twice\)"):
        read(written(form, tmp_path, ["c1", "c2", "c1"], matrix(3, WIDTH)), {"c2": 0})


def test_an_id_in_two_files_is_refused(tmp_path):
    paths = [written("npz", tmp_path), written("parquet", tmp_path, ["c4", "c5"])]
    with pytest.raises(UserError, match=r"'c4', in .*features.parquet and .*features.npz"):
        precomputed.FeatureTable(paths, None, None)


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_if_they_are_needed(tmp_path, form, wrong):
    values = matrix(4, WIDTH)
    values[1, 2] = wrong
    path = written(form, tmp_path, IDS, values)
    assert len(read(path, {"c1": 0})) == 1
    with pytest.raises(UserError, match="features of 'c2' have values that are not finite"):
        read(path, {"c1": 0, "c2": 0})


def test_values_that_do_not_fit_the_storage_are_refused(tmp_path):
    path = written("npz", tmp_path, IDS, matrix(4, WIDTH) + 1e6)
    with pytest.raises(UserError, match=r"too large or too small for float16. Set `storage: float32`, or scale them"):
        read(path, {"c1": 0}, READING | {"storage": "float16"})


@pytest.mark.parametrize("form", ["parquet", "npz-ids", "safetensors", "hdf5"])
def test_another_width_is_refused(tmp_path, form):
    values = [matrix(WIDTH), matrix(WIDTH), matrix(WIDTH + 1), matrix(WIDTH)]
    with pytest.raises(UserError, match="features of 'c3' have the width 6, those before 5"):
        read(written(form, tmp_path, IDS, values), dict.fromkeys(IDS, 0))


def test_a_wrong_number_of_rows_is_refused(tmp_path):
    path = written("npz", tmp_path, IDS, matrix(4, 3, WIDTH))
    with pytest.raises(UserError, match="features of 'c2' have 3 rows, but the sequence has 5 residues"):
        read(path, {"c1": 3, "c2": 5}, RESIDUES)


def test_missing_vectors_of_a_table_are_refused(tmp_path):
    table = pa.table({"id": ["c1", "c2"], "vector": [[1.0, 2.0], None]})
    pq.write_table(table, tmp_path / "f.parquet")
    with pytest.raises(UserError, match="'c2' have"):
        read(tmp_path / "f.parquet", {"c1": 0, "c2": 0})


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda folder: folder / "none.npz", {}, "no such file"),
        (lambda folder: folder / "none.csv", {}, r"not a file of features. Use one of .h5ad, .parquet, .npz"),
        (
            lambda folder: written("h5ad", folder),
            {"key": "X_pca"},
            "no key of obsm 'X_pca' in obsm. Set `key` to one of: emb",
        ),
        (
            lambda folder: written("h5ad", folder),
            {"ids": "barcode"},
            "no column 'barcode' in obs for `ids`. It has: cell",
        ),
        (lambda folder: written("h5ad", folder, ["0", "1"]), {}, "its obs_names are the numbers of the rows"),
        (lambda folder: written("parquet", folder), {"key": "v"}, "no column 'v' of lists of numbers"),
        (lambda folder: written("parquet", folder), {"ids": "cell"}, "no column 'cell' with the ids"),
        (lambda folder: written("npz", folder), {"ids": "cells"}, "no array 'cells' with the ids"),
        (lambda folder: written("safetensors", folder), {"key": "a"}, "`key` is not supported for .safetensors"),
        (
            lambda folder: written("h5ad", folder).rename(folder / "a.h5"),
            {},
            "expected an array for each id, and no gr",
        ),
        (lambda folder: npz(folder / "f.npz", ["a"], matrix(2, 3)), {}, "has 2 entries, but there are 1 ids"),
        (lambda folder: npz(folder / "f.npz", [0.5, 1.5], matrix(2, 3)), {}, "0.5 in ids is not an id"),
        (lambda folder: npz(folder / "f.npz", ["a", "b"], ["x", "y"]), {}, "expected numbers"),
        (
            lambda folder: npz(folder / "f.npz", [["a"], ["b"]], matrix(2, 3)),
            {},
            r"row 1: \['a'\] in ids is not one id",
        ),
        (lambda folder: npy(folder / "f.npz"), {}, "not an archive, as np.savez"),
        (lambda folder: nullable(folder / "f.h5ad"), {"ids": "cell"}, "row 2: .* in cell is not an id"),
    ],
)
def test_files_that_cannot_be_read_are_refused(tmp_path, make, options, message):
    path = make(tmp_path)
    with pytest.raises(UserError, match=message):
        open_file(path, **options)


@pytest.mark.parametrize("suffix", [".h5ad", ".parquet", ".npz", ".safetensors", ".h5"])
@pytest.mark.parametrize("content", [b"not what it seems", b""])
def test_a_damaged_file_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"features{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match="Write it again"):
        open_file(path)


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("at", [0.5, 0.98])
def test_half_a_file_is_refused(tmp_path, form, at):
    path = written(form, tmp_path, [f"c{row}" for row in range(400)], matrix(400, WIDTH))
    content = path.read_bytes()
    path.write_bytes(content[: int(at * len(content))])
    with pytest.raises(UserError, match="cannot be read as"):
        read(path, {f"c{row}": 0 for row in range(400)})


def test_damaged_values_are_refused_where_the_file_tells(tmp_path):
    names, values = [f"c{row}" for row in range(400)], matrix(400, WIDTH)
    path = tmp_path / "features.npz"
    np.savez_compressed(path, ids=np.array(names), embeddings=values)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(255 - value for value in content[middle : middle + 64])
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read as .npz"):
        read(path, dict.fromkeys(names, 0))


def test_no_pickle_is_loaded(tmp_path):
    np.savez(tmp_path / "f.npz", ids=np.array(["a"], dtype=object), embeddings=matrix(1, 2))
    with pytest.raises(UserError, match=r"cannot be read as .npz"):
        open_file(tmp_path / "f.npz")


def test_numbers_of_rows_can_be_ids_if_one_says_so(tmp_path):
    path = written("h5ad", tmp_path, ["0", "1"])
    assert open_file(path, ids="obs_names").ids == ["0", "1"]


# --- In a task ---


def reference(folder, *paths, **spec):
    """An encoder of these files, as `cisterna encoder` publishes it."""
    output = folder / "encoders" / "given" / "checkpoint"
    spec = {"features": list(map(str, paths)), "key": None, "ids": None} | spec
    assert cli.main(["encoder", "--spec", json.dumps(spec), "--work", str(folder / ".w"), "--output", str(output)]) == 0
    return output


def bank_of(folder, encoder, data, reading, code=0):
    output = folder / "features" / "given"
    words = ["features", "--encoder", str(encoder), "--data", str(data), "--reading", json.dumps(reading)]
    assert cli.main([*words, "--work", str(folder / ".work"), "--output", str(output)]) == code
    return output


def sequences_of(data):
    frames = [pd.read_parquet(data / f"{split}.parquet") for split in SPLITS]
    return pd.concat(frames).set_index("id")["sequence"]


def test_a_bank_has_the_rows_of_every_id_in_shards(splice, tmp_path, capsys):
    sequences = sequences_of(splice)
    values = {name: matrix(len(text), WIDTH, seed=row) for row, (name, text) in enumerate(sequences.items())}
    path = safetensors(tmp_path / "f.safetensors", [*values, "extra"], [*values.values(), matrix(3, WIDTH)])
    encoder = reference(tmp_path, path)
    feature_bank.build_by_id(encoder, splice, RESIDUES, tmp_path / ".work", tmp_path / "bank", shard_bytes=4000)
    bank = feature_bank.Bank(tmp_path / "bank")
    assert f"features of {len(values)} ids; 1 more ids of {path}" in capsys.readouterr().out
    assert len(list((tmp_path / "bank").glob("*.safetensors"))) > 1
    assert bank.manifest["trained"]["unused"] == 1
    for name, rows in values.items():
        first, count = bank.place(name, len(rows))
        np.testing.assert_array_equal(bank.rows(torch.arange(first, first + count)).numpy(), rows)


def test_prompts_have_the_rows_of_their_stretches(base, splice, tmp_path):
    """splice-donor shows three and six bases of a sequence of nine."""
    sequences = sequences_of(splice)
    values = {name: matrix(9, WIDTH, seed=row) for row, name in enumerate(sequences.index)}
    encoder = reference(tmp_path, npz_of_ids(tmp_path / "f.npz", list(values), list(values.values())))
    frame = pd.read_parquet(splice / "id.parquet")
    tokenizer = tokenization.load(base)
    for pool, expected in ((None, 9), (3, 3)):
        reading = RESIDUES | {"pool": pool}
        bank = feature_bank.Bank(bank_of(tmp_path / str(pool), encoder, splice, reading))
        columns = (list(frame[name]) for name in ("prompt", "segments", "id"))
        prompts, segments, names = columns
        ids = encode_prompts(tokenizer, prompts, SequenceSource("features", bank), segments, 10_000, names)
        for name, row in zip(frame["id"], ids, strict=True):
            given = [token - 10_000 for token in row if token >= 10_000]
            rows = torch.from_numpy(values[name]).reshape(expected, -1, WIDTH).mean(dim=1)
            torch.testing.assert_close(bank.rows(torch.tensor(given)), rows)


def test_features_of_other_lengths_stop_the_bank_with_one_line(splice, tmp_path, capsys):
    names = list(sequences_of(splice).index)
    encoder = reference(tmp_path, npz(tmp_path / "f.npz", names, matrix(len(names), WIDTH)))
    output = bank_of(tmp_path, encoder, splice, RESIDUES, code=2)
    assert "have 1 rows, but the sequence has 9 residues" in capsys.readouterr().err
    assert not output.exists()


def test_stretches_of_different_sequences_have_ids_of_their_own():
    two = [[{"sequence": "AC"}, {"sequence": "AG"}], [{"sequence": "AC"}, {"sequence": "AC"}]]
    one = [[{"sequence": "ACGU"}, {"sequence": "ACGU"}]]
    assert precomputed.sequence_names(one, ()) == ()
    assert precomputed.sequence_names(two, ()) == ("1", "2")
    assert precomputed.sequence_names(two, ("wt", "mut")) == ("wt", "mut")
    assert precomputed.ids_of("r1", 2, ("wt", "mut")) == ["r1/wt", "r1/mut"]
    assert precomputed.wanted(["r1", "r2"], two, ("1", "2")) == {"r1/1": 2, "r1/2": 2, "r2/1": 2, "r2/2": 2}


def test_each_of_several_sequences_has_its_own_features_whatever_their_order_in_the_prompt(base, tmp_path):
    letters = np.array(list("ACGT"))
    random = np.random.default_rng(0)
    rows = [["".join(letters[random.integers(4, size=6)]) for _ in range(2)] for _ in range(30)]
    frame = pd.DataFrame(rows, columns=["ref", "var"]).assign(id=[f"r{row}" for row in range(30)])
    frame = frame.assign(label=["up", "down"] * 15, group=["in", "in", "out"] * 10)
    frame.to_csv(tmp_path / "pairs.csv", index=False)
    spec = {
        "file": str(tmp_path / "pairs.csv"), "modality": "dna", "labels": ["up", "down"], "ood": ["out"],
        "columns": {"id": "id", "sequence": {"wt": "ref", "mut": "var"}, "label": "label", "group": "group"},
        "prompt": "{mut} against {wt}?", "train": 10, "validation": 4, "id": 6,
    }  # fmt: skip
    splits.prepare("pairs", spec, 0, tmp_path / "data")
    values = {
        f"r{row}/{name}": matrix(WIDTH, seed=2 * row + (name == "mut")) for row in range(30) for name in ("wt", "mut")
    }
    encoder = reference(tmp_path, npz(tmp_path / "f.npz", list(values), np.stack(list(values.values()))))
    bank = feature_bank.Bank(bank_of(tmp_path, encoder, tmp_path / "data", READING))
    examples = pd.read_parquet(tmp_path / "data" / "train.parquet")
    prompts, segments, names = (list(examples[name]) for name in ("prompt", "segments", "id"))
    source = SequenceSource("features", bank)
    ids = encode_prompts(tokenization.load(base), prompts, source, segments, 10_000, names)
    for name, row in zip(names, ids, strict=True):
        found = bank.rows(torch.tensor([token - 10_000 for token in row if token >= 10_000])).numpy()
        np.testing.assert_array_equal(found, [values[f"{name}/mut"], values[f"{name}/wt"]])


# --- Cells: from an .h5ad file to metrics and predictions ---

KINDS = ["B cell", "T cell", "monocyte"]


def cells_file(path, count=150, seed=0, prefix="cell"):
    """Cells whose genes say nothing about their kind, and whose embeddings say it all."""
    random = np.random.default_rng(seed)
    kinds = random.integers(len(KINDS), size=count)
    centers = np.random.default_rng(9).normal(size=(len(KINDS), 16))
    obs = pd.DataFrame(
        {"kind": [KINDS[kind] for kind in kinds], "donor": [f"d{row % 5}" for row in range(count)]},
        index=[f"{prefix}-{row}" for row in range(count)],
    )
    made = anndata.AnnData(random.poisson(2.0, (count, 12)).astype(np.float32), obs=obs)
    made.var_names = [f"G{number}" for number in range(12)]
    made.obsm["embeddings"] = (centers[kinds] + 0.1 * random.normal(size=(count, 16))).astype(np.float32)
    made.write_h5ad(path)
    return made


@pytest.fixture(scope="module")
def cells(base, tmp_path_factory):
    """The folder of a study of cells: data, bank, and a model of the embeddings alone."""
    folder = tmp_path_factory.mktemp("cells")
    cells_file(folder / "cells.h5ad")
    options = {
        "label": "kind",
        "group": "donor",
        "genes": 12,
        "question": "Kind?",
        "layer": None,
        "names": None,
        "reasoning": None,
    }
    spec = {"adapter": "cells", "file": str(folder / "cells.h5ad"), "options": options | {"sample": None}}
    spec |= {"ood": ["d4"], "train": 64, "validation": 8, "id": 24}
    splits.prepare("blood", spec, 0, folder / "data")
    encoder = reference(folder, folder / "cells.h5ad")
    bank = bank_of(folder, encoder, folder / "data", READING)
    reads = {"sequences": "features", "bank": bank}
    run = Run("sft", base, folder / "data", folder / "model", SOLVE, 24, reads=reads).here()
    return folder, bank, run.output


def test_a_model_learns_the_kind_of_cells_from_their_embeddings(cells):
    folder, bank, model = cells
    results = evaluate(model, folder / "data", folder / "eval", OPTIONS, bank)
    assert results["id"]["accuracy"]["value"] > 0.8
    assert results["ood"]["accuracy"]["value"] > 0.8
    assert evaluate(model, folder / "data", folder / "eval-files", OPTIONS) == results  # without the bank


def test_new_cells_are_answered_with_their_own_embeddings(cells, tmp_path, capsys):
    _, _, model = cells
    made = cells_file(tmp_path / "new.h5ad", 20, seed=5, prefix="new")
    words = ["predict", str(model), "--input", str(tmp_path / "new.h5ad"), "--options", json.dumps(OPTIONS)]
    words += ["--output", str(tmp_path / "answers.parquet")]
    assert cli.main(words) == 2
    assert "no features of 20 of 20 ids (first: 'new-0', 'new-1', 'new-2')" in capsys.readouterr().err
    assert cli.main([*words, "--features", str(tmp_path / "new.h5ad")]) == 0
    answers = pd.read_parquet(tmp_path / "answers.parquet")
    assert (answers["predicted"].to_numpy() == made.obs["kind"].to_numpy()).mean() > 0.8


@pytest.mark.parametrize("suffix", [".h5ad", ".csv"])
def test_new_rows_without_ids_are_not_taken_for_old_ones(cells, tmp_path, capsys, suffix):
    _, _, model = cells
    path = tmp_path / f"new{suffix}"
    made = cells_file(tmp_path / "made.h5ad", 4, seed=5)
    made.obs_names = [str(row) for row in range(4)]
    if suffix == ".h5ad":
        made.write_h5ad(path)
    else:
        pd.DataFrame({"sequence": ["G1 G2"] * 4}).to_csv(path, index=False)
    words = ["predict", str(model), "--input", str(path), "--options", json.dumps(OPTIONS)]
    assert cli.main([*words, "--output", str(tmp_path / "answers.parquet")]) == 2
    assert "its rows have no ids but their numbers" in capsys.readouterr().err


def test_features_are_refused_where_a_model_reads_none(solved, tmp_path):
    with pytest.raises(UserError, match="reads no precomputed features"):
        source_of(solved.output, features=[tmp_path / "f.npz"])


def test_a_file_that_changed_after_training_is_refused(cells, tmp_path):
    folder, _, model = cells
    path = folder / "cells.h5ad"
    before = path.read_bytes()
    try:
        cells_file(path, seed=3)
        with pytest.raises(UserError, match=r"cells.h5ad: its files have changed since .* was made"):
            evaluate(model, folder / "data", tmp_path / "eval", OPTIONS)
    finally:
        path.write_bytes(before)


def test_the_hash_of_the_file_is_in_the_manifest(cells):
    folder, bank, _ = cells
    encoder = folder / "encoders" / "given" / "checkpoint"
    assert list(checkpoint.read_manifest(encoder)["data"]) == [str(folder / "cells.h5ad")]
    assert checkpoint.parent_of(bank, checkpoint.verify(bank)) == encoder
    with pytest.raises(UserError, match="which no encoder computes here"):
        encoders.load(encoder, -1)


@pytest.mark.parametrize(
    ("form", "shown"),
    [("tokens", "Kind? G1 G0\n"), ("features", "Kind?<rna>\x00</rna>\n"), ("both", "Kind? G1 G0<rna>\x00</rna>\n")],
)
def test_a_cell_is_its_sentence_its_features_or_both(form, shown):
    assert tokenization.expand("Kind?<rna> G1 G0</rna>\n", form) == shown


def test_words_of_a_cell_cannot_write_structure(base):
    tokenizer = tokenization.load(base)
    tokenizer.add_special_tokens({"extra_special_tokens": ["[CELL]"]})
    escaped = tokenization.escape(tokenizer, ["[CELL]<rna> G1 [CELL]</rna> <rna>AC</rna>"])
    assert escaped == ["[ CELL]<rna> G1 [ CELL]</rna> <rna>AC</rna>"]
