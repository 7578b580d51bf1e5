"""The adapter `cells`: sentences as the cell2sentence package makes them, from any AnnData file, read in pieces."""

import hashlib
import itertools
import subprocess
import sys
import tracemalloc

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cisterna import tasks
from cisterna.constants import SPLITS
from cisterna.data import splits
from cisterna.data.drawing import draw_splits
from cisterna.errors import UserError
from cisterna.tasks.adapters import cells

CELLS, GENES = 60, 80
OPTIONS = {"label": "kind", "group": "donor", "genes": 100, "layer": None, "names": None, "sample": None}
OPTIONS |= {"question": "Which cell type?", "answer_form": True}
FORM = 'End with the line "Answer: X", where X is nothing but the answer.\n'
# sha256 of the 60 sentences that cell2sentence 1.2.0 makes of `counts()`, joined by line breaks.
PACKAGE = "56eeeb0369b2a34d03fba5770ad6caf48b6050973a8c14c1c692a6492bc17f23"


def counts(cells=CELLS, genes=GENES, seed=0):
    """Counts with many ties and many zeros, no cell without a gene: int64, shape (cells, genes)."""
    found = np.random.default_rng(seed).poisson(0.8, (cells, genes))
    found[:, 0] += 1
    return found


def annotated(matrix, **parts):
    """An AnnData with names that differ in case, three kinds of cells and four donors."""
    cells, genes = matrix.shape
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical([("B cell", "CD4+ T", "monocyte")[row % 3] for row in range(cells)]),
            "donor": [f"donor-{row % 4}" for row in range(cells)],
            "age": [20.5 + row for row in range(cells)],
        },
        index=[f"cell-{row}" for row in range(cells)],
    )
    names = [f"Gene{column}a" if column % 2 else f"GENE{column}" for column in range(genes)]
    var = pd.DataFrame({"symbol": [f"S{column}" for column in range(genes)]}, index=names)
    return anndata.AnnData(matrix, obs=obs, var=var, **parts)


def unsorted(matrix):
    """The same CSR matrix, the values of each row stored backwards."""
    found = sparse.csr_matrix(matrix)
    for row in range(found.shape[0]):
        stored = slice(found.indptr[row], found.indptr[row + 1])
        found.indices[stored] = found.indices[stored][::-1].copy()
        found.data[stored] = found.data[stored][::-1].copy()
    found.has_sorted_indices = False
    return found


def normalised(matrix):
    """What Scanpy's normalize_total and log1p make of counts, as float32 in CSR."""
    return sparse.csr_matrix(np.log1p(matrix / matrix.sum(axis=1, keepdims=True) * 1e4).astype(np.float32))


FORMS = {
    "csr": lambda matrix: sparse.csr_matrix(matrix.astype(np.float32)),
    "csc": lambda matrix: sparse.csc_matrix(matrix.astype(np.float32)),
    "dense": lambda matrix: matrix.astype(np.float32),
    "integers": lambda matrix: sparse.csr_matrix(matrix.astype(np.uint16)),
    "unsorted": lambda matrix: unsorted(matrix.astype(np.float32)),
    "normalised": normalised,
}


def stored(path, matrix=None, **parts):
    """Write an AnnData file; returns its path."""
    annotated(counts() if matrix is None else matrix, **parts).write_h5ad(path)
    return path


def sentences(path, seed=0, **options):
    return cells.read(path, OPTIONS | options, seed)["sequence"].tolist()


def entry(path, **more):
    """The task's entry in a config."""
    spec = {"adapter": "cells", "file": str(path), "options": OPTIONS | {"genes": 20}}
    return spec | {"ood": ["donor-3"], "train": 20, "validation": 5, "id": 10} | more


@pytest.fixture
def package():
    """`cell2sentence.utils` of the package itself."""
    reason = "cell2sentence is not installed (make test installs it)"
    return pytest.importorskip("cell2sentence.utils", reason=reason)


def made_by(package, data):
    return package.generate_sentences(data, package.generate_vocabulary(data))


@pytest.mark.parametrize("form", FORMS)
def test_sentences_are_those_of_the_cell2sentence_package_ties_included(package, tmp_path, form):
    found = annotated(FORMS[form](counts()))
    found.write_h5ad(tmp_path / "cells.h5ad")
    assert sentences(tmp_path / "cells.h5ad") == made_by(package, found)


@pytest.mark.parametrize("form", FORMS)
def test_a_sample_gives_the_sentences_that_the_package_makes_of_these_cells_alone(package, tmp_path, form):
    found = annotated(FORMS[form](counts()))
    found.write_h5ad(tmp_path / "cells.h5ad")
    frame = cells.read(tmp_path / "cells.h5ad", OPTIONS | {"sample": 23}, 5)
    assert frame["sequence"].tolist() == made_by(package, found[frame["id"]].copy())


def test_the_package_has_not_changed_since_its_sentences_were_written_down(package):
    assert digest(made_by(package, annotated(FORMS["csr"](counts())))) == PACKAGE


def digest(found):
    return hashlib.sha256("\n".join(found).encode()).hexdigest()


@pytest.mark.parametrize("form", ["csr", "csc", "dense", "integers"])
def test_sentences_are_those_that_the_package_made_before(tmp_path, form):
    assert digest(sentences(stored(tmp_path / "cells.h5ad", FORMS[form](counts())))) == PACKAGE


def test_genes_come_in_descending_order_in_upper_case_and_without_those_that_are_zero(tmp_path):
    matrix = counts()
    for row, sentence in enumerate(sentences(stored(tmp_path / "cells.h5ad", FORMS["csr"](matrix)))):
        value = {f"GENE{column}A" if column % 2 else f"GENE{column}": matrix[row, column] for column in range(GENES)}
        named = sentence.split()
        assert sorted(named) == sorted(name for name in value if value[name] > 0)
        assert all(value[first] >= value[second] for first, second in itertools.pairwise(named))


def test_a_zero_that_is_stored_names_no_gene_and_changes_no_tie(tmp_path):
    matrix = FORMS["csr"](counts())
    padded = matrix.copy()
    padded.data[::7] = 0
    clean = padded.copy()
    clean.eliminate_zeros()
    assert padded.nnz > clean.nnz
    assert sentences(stored(tmp_path / "padded.h5ad", padded)) == sentences(stored(tmp_path / "clean.h5ad", clean))


def test_ties_are_broken_at_random_and_not_by_the_order_of_genes(tmp_path):
    found = sentences(stored(tmp_path / "cells.h5ad", np.ones((40, 30), dtype=np.float32)))
    assert len(set(found)) == 40
    assert found == sentences(tmp_path / "cells.h5ad")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sample", [None, 17])
def test_the_size_of_a_piece_changes_nothing(tmp_path, monkeypatch, form, sample):
    path = stored(tmp_path / "cells.h5ad", FORMS[form](counts()))
    whole = sentences(path, sample=sample)
    monkeypatch.setattr(cells, "ENTRIES", 150)
    monkeypatch.setattr(cells, "PASS", 7)
    assert sentences(path, sample=sample) == whole


@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
def test_memory_is_bounded_by_the_piece_and_not_by_the_file(tmp_path, monkeypatch, form):
    matrix = np.random.default_rng(0).poisson(2.0, (2000, 2000)).astype(np.float32)
    matrix[:, 0] += 1
    path = stored(tmp_path / "cells.h5ad", FORMS[form](matrix))
    monkeypatch.setattr(cells, "ENTRIES", 50_000)
    monkeypatch.setattr(cells, "PASS", 50)
    tracemalloc.start()
    try:
        sentences(path, genes=5, sample=150)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < matrix.nbytes / 4, f"{peak / 1e6:.1f} MB of a matrix of {matrix.nbytes / 1e6:.0f} MB"


@pytest.mark.parametrize("form", ["csr", "dense"])
def test_of_cells_outside_the_sample_no_expression_is_read(tmp_path, form):
    path = stored(tmp_path / "cells.h5ad", FORMS[form](counts()))
    kept = cells.read(path, OPTIONS | {"sample": 10}, 0)
    broken = counts().astype(np.float32)
    broken[~annotated(broken).obs_names.isin(kept["id"])] = np.nan
    stored(path, FORMS[form](broken))
    assert cells.read(path, OPTIONS | {"sample": 10}, 0).equals(kept)
    with pytest.raises(UserError, match="is nan"):
        cells.read(path, OPTIONS, 0)


def test_a_larger_sample_holds_a_smaller_one_and_the_seed_draws_another(tmp_path):
    path = stored(tmp_path / "cells.h5ad")
    ids = {size: cells.read(path, OPTIONS | {"sample": size}, 0)["id"].tolist() for size in (10, 25, 60, 1000)}
    assert [len(found) for found in ids.values()] == [10, 25, 60, 60]
    assert set(ids[10]) < set(ids[25])
    assert ids[25] == [name for name in ids[60] if name in set(ids[25])]
    assert set(cells.read(path, OPTIONS | {"sample": 10}, 1)["id"]) != set(ids[10])


def test_a_sample_keeps_the_cells_that_the_split_would_draw_first(tmp_path):
    path = stored(tmp_path / "cells.h5ad")
    spec = entry(path)
    sizes = {"train": 5, "validation": 2, "id": 4, "ood": 2}
    drawn = {}
    for sample in (None, 30):
        task = tasks.load("blood", spec | {"options": spec["options"] | {"sample": sample}, "seed": 3})
        frames = draw_splits(tasks.read(task), sizes, 3, "blood")
        drawn[sample] = {which: frame["id"].tolist() for which, frame in frames.items()}
    assert drawn[30] == drawn[None]


def test_a_layer_raw_and_a_column_of_names_are_read_where_they_are_named(tmp_path):
    matrix = FORMS["csr"](counts())
    found = annotated(matrix)
    found.layers["reversed"] = FORMS["csr"](counts()[:, ::-1])
    found.layers["by gene"] = FORMS["csc"](counts())
    found.raw = annotated(FORMS["csr"](counts(CELLS, 100, seed=9)))
    found.X = found.X * -1
    found.write_h5ad(tmp_path / "cells.h5ad")
    plain = sentences(stored(tmp_path / "plain.h5ad", matrix))
    path = tmp_path / "cells.h5ad"
    assert sentences(path, layer="by gene") == plain
    assert sentences(path, layer="reversed") == sentences(
        stored(tmp_path / "reversed.h5ad", FORMS["csr"](counts()[:, ::-1]))
    )
    raw = stored(tmp_path / "raw.h5ad", FORMS["csr"](counts(CELLS, 100, seed=9)))
    assert sentences(path, layer="raw.X") == sentences(raw)
    symbols = sentences(path, layer="by gene", names="symbol")
    assert symbols == [sentence.replace("GENE", "S").replace("A", "") for sentence in plain]


@pytest.mark.filterwarnings("ignore:Element .* was written without encoding metadata")
def test_categories_as_anndata_0_7_stored_them_are_read(tmp_path):
    path = stored(tmp_path / "cells.h5ad")
    expected = cells.read(path, OPTIONS, 0)
    with h5py.File(path, "r+") as file:
        obs = file["obs"]
        codes, names = obs["kind/codes"][:], obs["kind/categories"].asstr()[:]
        del obs["kind"]
        obs.create_dataset("__categories/kind", data=names.astype(object), dtype=h5py.string_dtype())
        obs["kind"] = codes
        obs["kind"].attrs["categories"] = obs["__categories/kind"].ref
        obs.attrs["encoding-version"] = "0.1.0"
    assert cells.read(path, OPTIONS, 0).equals(expected)


def test_a_cell_becomes_prompt_trace_and_answer(tmp_path):
    matrix = np.stack([np.roll(np.arange(8, 0, -1), row) for row in range(8)])
    path = stored(tmp_path / "cells.h5ad", matrix.astype(np.float32))
    examples = tasks.read(tasks.load("blood", entry(path, options=OPTIONS | {"genes": 6})))
    assert examples.iloc[0].to_dict() == {
        "id": "cell-0",
        "prompt": "Which cell type?<rna> GENE0 GENE1A GENE2 GENE3A GENE4 GENE5A</rna>\n" + FORM,
        "segments": [{"sequence": " GENE0 GENE1A GENE2 GENE3A GENE4 GENE5A", "start": 0, "center": None}],
        "reasoning": "most expressed GENE0, GENE1A, GENE2, GENE3A, GENE4",
        "answer": "B cell",
        "sequence": "GENE0 GENE1A GENE2 GENE3A GENE4 GENE5A",
        "group": "donor-0",
        "ood": False,
    }


def test_a_card_of_an_earlier_version_asks_as_it_did(tmp_path):
    path = stored(tmp_path / "cells.h5ad")
    old = {name: value for name, value in OPTIONS.items() if name != "answer_form"}
    for options, end in ((OPTIONS, FORM), (OPTIONS | {"answer_form": False}, "\n"), (old, "\n")):
        task = tasks.load("blood", entry(path, options=options))
        for prompts in (tasks.read(task)["prompt"], tasks.questions(task, path)["prompt"]):
            assert prompts.str.endswith(end).all()
            assert prompts.str.contains("Answer: ").any() == (end == FORM)


def test_reasoning_is_a_column_of_obs_or_left_out(tmp_path):
    found = annotated(counts())
    found.obs["why"] = [f"because {row}" for row in range(CELLS)]
    found.write_h5ad(tmp_path / "cells.h5ad")
    frame = cells.read(tmp_path / "cells.h5ad", OPTIONS | {"reasoning": "why"}, 0)
    assert frame["reasoning"].tolist() == list(found.obs["why"])
    assert set(cells.read(tmp_path / "cells.h5ad", OPTIONS | {"reasoning": None}, 0)["reasoning"]) == {""}
    named = cells.read(tmp_path / "cells.h5ad", OPTIONS | {"reasoning": "genes"}, 0)
    assert named["reasoning"].equals(cells.read(tmp_path / "cells.h5ad", OPTIONS, 0)["reasoning"])
    with pytest.raises(UserError, match="no column 'no' in obs"):
        cells.read(tmp_path / "cells.h5ad", OPTIONS | {"reasoning": "no"}, 0)


def test_splits_are_made_with_held_out_donors_in_ood_alone(tmp_path):
    path = stored(tmp_path / "cells.h5ad")
    splits.prepare("blood", entry(path), 0, tmp_path / "blood")
    frames = {which: pd.read_parquet(tmp_path / "blood" / f"{which}.parquet") for which in SPLITS}
    assert {which: len(frame) for which, frame in frames.items()} == {"train": 20, "validation": 5, "id": 10, "ood": 15}
    assert set(frames["ood"]["group"]) == {"donor-3"}
    card = splits.read_card(tmp_path / "blood")
    assert sorted(card["labels"]) == ["B cell", "CD4+ T", "monocyte"]
    assert card["audit"]["nearest_train"]["ood"]["measure"] == "jaccard of genes"


def two_columns(path):
    found = annotated(counts())
    found.obs["tissue"] = [("lung", "gut", "skin")[row // 4 % 3] for row in range(CELLS)]
    found.write_h5ad(path)
    return path


def test_values_of_several_columns_are_held_out(tmp_path):
    path = two_columns(tmp_path / "cells.h5ad")
    spec = entry(
        path, options=OPTIONS | {"genes": 20, "group": None}, ood={"tissue": ["lung"], "donor": ["donor-3"]}, train=12
    )
    splits.prepare("blood", spec, 0, tmp_path / "blood")
    ood = pd.read_parquet(tmp_path / "blood" / "ood.parquet")
    assert len(ood) == 30  # 20 of lung, 15 of the donor, 5 of both
    assert ood["group"].value_counts().to_dict() == {
        "unseen tissue": 15,
        "unseen donor": 10,
        "unseen tissue and donor": 5,
    }
    others = pd.concat([pd.read_parquet(tmp_path / "blood" / f"{split}.parquet") for split in SPLITS[:3]])
    assert not others["split:tissue"].isin(["lung"]).any()
    assert not others["split:donor"].isin(["donor-3"]).any()
    assert splits.read_card(tmp_path / "blood")["rule"].startswith(
        "out of domain: cells whose 'tissue' is one of lung, or whose 'donor' is one of donor-3"
    )


def test_values_of_several_columns_may_be_drawn(tmp_path):
    path = two_columns(tmp_path / "cells.h5ad")
    split = {"by": "group", "column": ["tissue", "donor"], "ood": 0.5}
    spec = entry(path, options=OPTIONS | {"genes": 20, "group": None}, split=split, ood="all", train=9)
    splits.prepare("blood", spec, 0, tmp_path / "blood")
    assert set(splits.read_card(tmp_path / "blood")["unseen"]) == {"tissue", "donor"}


def test_a_value_that_no_cell_has_is_refused(tmp_path):
    path = two_columns(tmp_path / "cells.h5ad")
    spec = entry(path, options=OPTIONS | {"group": None}, ood={"tissue": ["brain"]})
    with pytest.raises(
        UserError, match=r"no row has the group 'brain' of `ood`\. Column 'tissue' has: gut, lung, skin"
    ):
        tasks.read(tasks.load("blood", spec))


def test_labels_that_are_held_out_and_so_never_taught_are_said(tmp_path, capsys):
    path = stored(tmp_path / "cells.h5ad")
    spec = entry(path, options=OPTIONS | {"genes": 20, "group": "kind"}, ood=["monocyte"])
    splits.prepare("blood", spec, 0, tmp_path / "blood")
    note = "ood: 20 of 20 rows have an answer that no row of train has (monocyte)"
    assert [text.startswith(note) for text in splits.read_card(tmp_path / "blood")["notes"]].count(True) == 1
    assert f"note: {note}" in capsys.readouterr().out


def test_columns_of_obs_that_are_not_read_are_listed(tmp_path):
    found = annotated(counts())
    found.obs["batch"], found.obs["percent_mito"] = "a", 0.5
    found.write_h5ad(tmp_path / "a.h5ad")
    notes = tasks.read(tasks.load("cells", entry(tmp_path / "a.h5ad"))).attrs["notes"]
    assert "columns of obs that are not read: age, batch, percent_mito" in notes


def test_genes_that_are_called_by_ensembl_ids_are_said(tmp_path):
    found = annotated(counts())
    found.var["feature_name"] = found.var_names
    found.var_names = [f"ENSG{number:011}.2" for number in range(GENES)]
    found.write_h5ad(tmp_path / "a.h5ad")
    said = "genes have Ensembl ids as names in prompts"
    notes = tasks.read(tasks.load("cells", entry(tmp_path / "a.h5ad"))).attrs["notes"]
    assert [note for note in notes if note.startswith(said) and "feature_name" in note]
    named = entry(tmp_path / "a.h5ad", options=OPTIONS | {"names": "feature_name"})
    assert not [note for note in tasks.read(tasks.load("cells", named)).attrs["notes"] if note.startswith(said)]


def test_labels_that_are_the_text_nan_are_said(tmp_path):
    found = annotated(counts())
    found.obs["kind"] = ["nan", "T cell"] * (CELLS // 2)
    found.write_h5ad(tmp_path / "a.h5ad")
    card = tasks.read(tasks.load("cells", entry(tmp_path / "a.h5ad", ood=["donor-3"]))).attrs["notes"]
    assert any("kind" in note and "rows: 30" in note and "'nan'" in note for note in card)


def test_cells_of_one_sentence_are_kept_once(tmp_path):
    matrix = np.tile(np.arange(GENES, 0, -1, dtype=np.float32), (12, 1))
    found = annotated(matrix)
    found.obs["kind"] = "B cell"
    found.obs["donor"] = "donor-0"
    found.write_h5ad(tmp_path / "cells.h5ad")
    examples = cells.examples(
        cells.read(tmp_path / "cells.h5ad", OPTIONS, 0), path=tmp_path, options=OPTIONS, held_out={}
    )
    assert examples["id"].tolist() == ["cell-0"]


def test_new_cells_are_asked_about_from_a_file_without_labels_or_from_a_table_of_sentences(tmp_path):
    path = stored(tmp_path / "cells.h5ad")
    expected = tasks.read(tasks.load("blood", entry(path)))
    task = tasks.load("blood", entry(path, options=OPTIONS | {"genes": 20, "sample": 7}))
    new = annotated(counts())
    new.obs = new.obs[[]]
    new.write_h5ad(tmp_path / "new.h5ad")
    asked = tasks.questions(task, tmp_path / "new.h5ad")
    for column in ("id", "sequence", "prompt", "segments"):
        assert asked[column].tolist() == expected[column].tolist()
    expected[["id", "sequence"]].to_csv(tmp_path / "new.csv", index=False)
    assert tasks.questions(task, tmp_path / "new.csv")["prompt"].tolist() == expected["prompt"].tolist()


def test_anndata_is_imported_only_when_a_file_is_read(tmp_path):
    code = (
        "import sys; from cisterna import tasks; "
        f"tasks.load('blood', {entry(tmp_path / 'absent.h5ad')!r}); "
        "print(sorted({'anndata', 'h5py', 'zarr'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def edited(**columns):
    """Change columns of obs."""

    def edit(found):
        for name, values in columns.items():
            found.obs[name] = values(found.obs[name]) if callable(values) else values

    return edit


def put(value, cell=3, gene=4):
    def edit(found):
        found.X[cell, gene] = value

    return edit


def named(**names):
    """Rename: `gene` or `cell` = (number, name)."""

    def edit(found):
        for axis, (number, name) in names.items():
            index = list(found.var_names if axis == "gene" else found.obs_names)
            index[number] = name
            setattr(found, "var_names" if axis == "gene" else "obs_names", index)

    return edit


def emptied(found):
    found.X[7] = 0


BROKEN = {
    "no label column": (None, {"label": "cell_type"}, r"no column 'cell_type' in obs. It has: age, donor, kind"),
    "no group column": (None, {"group": "batch"}, r"no column 'batch' in obs"),
    "no names column": (None, {"names": "feature"}, r"no column 'feature' in var. It has: symbol"),
    "no layer": (None, {"layer": "counts"}, r"no layer 'counts'.* null"),
    "no raw": (None, {"layer": "raw.X"}, r"no raw.X"),
    "label of fractions": (None, {"label": "age"}, r"column 'age' of obs holds fractions"),
    "label missing": (
        edited(kind=lambda kind: kind.where(kind.index != "cell-5")),
        {},
        r"cell 'cell-5' has no value in column 'kind' of obs, and so have 0 more",
    ),
    "label of two lines": (edited(kind="a\nb"), {}, r"obs column 'kind': .*a\\nb"),
    "label with markup": (edited(kind="<think>"), {}, r"contains '<think>'"),
    "negative": (put(-1.5), {}, r"cell 'cell-3': the expression of GENE4 is -1.5"),
    "not a number": (put(np.nan), {}, r"cell 'cell-3': the expression of GENE4 is nan"),
    "infinite": (put(np.inf), {}, r"cell 'cell-3': the expression of GENE4 is inf"),
    "cell without genes": (emptied, {}, r"cell 'cell-7' expresses no gene"),
    "two cells of one name": (named(cell=(9, "cell-2")), {}, r"cell 3 and cell 10 .*'cell-2'"),
    "two genes of one name": (named(gene=(5, "Gene2")), {}, r"gene 3 and gene 6 .*'GENE2'"),
    "gene with a blank": (named(gene=(5, "HLA A")), {}, r"gene 6: the name 'HLA A' .* has blanks"),
    "gene with markup": (named(gene=(5, "<|dna:A|>")), {}, r"gene 6: contains '<\|'"),
}


@pytest.mark.filterwarnings("ignore:.*names are not unique")
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named_with_cell_and_gene(tmp_path, case):
    edit, options, message = BROKEN[case]
    found = annotated(counts().astype(np.float32))
    if edit:
        edit(found)
    found.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(UserError, match=message) as caught:
        cells.read(tmp_path / "cells.h5ad", OPTIONS | options, 0)
    assert str(tmp_path / "cells.h5ad") in str(caught.value)


@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
def test_the_right_cell_and_gene_are_named_in_a_later_piece_of_a_sample(tmp_path, monkeypatch, form):
    monkeypatch.setattr(cells, "ENTRIES", 150)
    monkeypatch.setattr(cells, "PASS", 7)
    path = stored(tmp_path / "cells.h5ad", FORMS[form](counts()))
    cell = cells.read(path, OPTIONS | {"sample": 30}, 0)["id"][20]
    matrix = counts()
    matrix[int(cell.removeprefix("cell-")), 33] = -2
    stored(path, FORMS[form](matrix))
    with pytest.raises(UserError, match=f"cell '{cell}': the expression of GENE33A is -2"):
        cells.read(path, OPTIONS | {"sample": 30}, 0)


def test_a_file_that_is_no_anndata_is_refused(tmp_path):
    path = tmp_path / "cells.h5ad"
    with pytest.raises(UserError, match="no such file"):
        cells.read(path, OPTIONS, 0)
    path.write_text("id,gene\n")
    with pytest.raises(UserError, match=r"cannot be read as \.h5ad"):
        cells.read(path, OPTIONS, 0)
    stored(path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(UserError, match=r"cannot be read as \.h5ad"):
        cells.read(path, OPTIONS, 0)
    with h5py.File(path, "w") as file:
        file["matrix"] = [1, 2]
    with pytest.raises(UserError, match=r"no table 'obs' as AnnData 0\.7 and later write it"):
        cells.read(path, OPTIONS, 0)


def test_a_value_that_is_stored_in_two_parts_is_their_sum(tmp_path):
    matrix = sparse.csr_matrix(counts().astype(np.float32))
    halves = sparse.csr_matrix(
        (np.repeat(matrix.data / 2, 2), np.repeat(matrix.indices, 2), matrix.indptr * 2), shape=matrix.shape
    )
    assert sentences(stored(tmp_path / "halves.h5ad", halves)) == sentences(stored(tmp_path / "whole.h5ad", matrix))


def test_a_matrix_of_another_shape_or_type_is_refused(tmp_path):
    path = stored(tmp_path / "cells.h5ad", FORMS["csr"](counts()))
    with h5py.File(path, "r+") as file:
        file["X"].attrs["shape"] = (CELLS, GENES + 1)
    with pytest.raises(UserError, match=r"X has the shape \(60, 81\), but there are 60 cells and 80 genes"):
        cells.read(path, OPTIONS, 0)
    with h5py.File(path, "r+") as file:
        del file["X"]
        file["X"] = b"text"
    with pytest.raises(UserError, match="X is not a matrix of numbers"):
        cells.read(path, OPTIONS, 0)


def test_cells_of_one_sentence_and_two_labels_and_an_unknown_donor_are_refused(tmp_path):
    matrix = np.tile(np.arange(GENES, 0, -1, dtype=np.float32), (12, 1))
    path = stored(tmp_path / "cells.h5ad", matrix)
    with pytest.raises(UserError, match=r"cell 'cell-0' and cell 'cell-1' .* different labels"):
        tasks.read(tasks.load("blood", entry(path)))
    with pytest.raises(UserError, match=r"'donor-9'.*donor-0"):
        tasks.read(tasks.load("blood", entry(path, ood=["donor-9"])))
