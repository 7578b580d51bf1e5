"""Proteins and their Gene Ontology terms, from a table to prompts, answers and the ontology that scores them."""

import csv
import json
import math

import numpy as np
import pandas as pd
import pytest

from cisterna import tasks
from cisterna.constants import SPLITS
from cisterna.data import splits
from cisterna.errors import UserError
from cisterna.evaluation import baselines
from cisterna.scoring import answers, gene_ontology, term_sets
from cisterna.tasks import catalog
from cisterna.tasks.adapters import go_terms
from terms import LIVE, OBO

ROLES = (*go_terms.QUESTION, "reasoning", *go_terms.TERMS)
COLUMNS = {role: catalog.ADAPTERS["go-terms"].options[role].default for role in ROLES}
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"


def protein(number, **cells):
    """A row with the columns of BioReason-Pro's data; sequences differ by number."""
    rng = np.random.default_rng(number)
    return {
        "protein_id": f"P{number:05}",
        "sequence": "M" + "".join(rng.choice(list(RESIDUES), 30)),
        "organism": "Homo sapiens",
        "interpro_formatted": "IPR000719: Protein kinase domain (3-9)",
        "go_pred": "GO:0000004, GO:0000014",
        "reasoning": "The kinase domain transfers phosphate.",
        "go_mf": "['GO:0000005', 'GO:0000004']",
        "go_bp": "GO:0000015",
        "go_cc": "",
        "structure_path": "x.cif",  # a column that is not read
    } | cells


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder with an ontology, in which commands are run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "go.obo").write_text(OBO)
    return tmp_path


def table(rows, path="proteins.csv"):
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def spec(file="proteins.csv", ood=("Danio rerio",), **options):
    return {"adapter": "go-terms", "file": file, "options": {"ontology": "go.obo"} | options, "ood": list(ood)}


def examples(rows, **options):
    table(rows)
    return tasks.read(tasks.load("functions", spec(ood=(), **options)))


def test_the_example_of_the_module_is_what_its_row_becomes(clone):
    (clone / "go.obo").write_text(
        OBO.replace("GO:0000002", "GO:0016301")
        .replace("GO:0000004", "GO:0004672")
        .replace("GO:0000003", "GO:0005524")
        .replace("GO:0000015", "GO:0006468")
    )
    text = go_terms.__doc__
    lines = text.partition("the row\n\n")[2].partition("\n\nbecomes")[0].strip().splitlines()
    row = {name: cell.strip() for name, _, cell in (line.strip().partition(" ") for line in lines)}
    assert set(row) == set(COLUMNS.values())
    table([row])
    (found,) = tasks.read(tasks.load("functions", spec(ood=(), answer_form=True))).to_dict("records")
    shown = text.partition("becomes\n\n")[2].partition("\n\nThe answer is")[0]
    lines = [line[12:] for line in shown.splitlines()]
    assert found["prompt"] == "\n".join(lines[:5]) + "\n"
    assert found["reasoning"] == lines[5]
    assert found["answer"] == lines[6]


def test_an_answer_is_the_fewest_terms_that_imply_all_of_the_row(clone):
    (found,) = examples([protein(1)]).to_dict("records")
    assert found["answer"] == "GO:0000005, GO:0000015"
    assert answers.parse_terms(answers.completion(found["reasoning"], found["answer"])) == found["answer"]
    assert found["segments"] == [{"sequence": found["sequence"], "start": 0, "center": None}]
    assert found["group"] == "Homo sapiens"


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("GO:0000005", ["GO:0000005"]),
        ("GO:0000005,GO:0000004", ["GO:0000005", "GO:0000004"]),
        ("GO:0000005; GO:0000004 ", ["GO:0000005", "GO:0000004"]),
        ("GO:0000005 GO:0000004\n", ["GO:0000005", "GO:0000004"]),
        ("['GO:0000005', 'GO:0000004']", ["GO:0000005", "GO:0000004"]),
        ("['GO:0000005' 'GO:0000004']", ["GO:0000005", "GO:0000004"]),  # as pandas writes an array into a CSV file
        ('["GO:0000005"]', ["GO:0000005"]),
        (["GO:0000005"], ["GO:0000005"]),
        (np.array(["GO:0000005", "GO:0000004"], dtype=object), ["GO:0000005", "GO:0000004"]),
        ("[]", []),
        ("", []),
        (None, []),
        (math.nan, []),
        ([], []),
    ],
)
def test_terms_are_read_from_lists_and_from_text(cell, expected):
    assert go_terms.ids(cell) == expected


@pytest.mark.parametrize(
    "cell",
    ["kinase", "GO:5", "GO:00000055", "['GO:0000005' ... 'GO:0000004']", "[1]", "['GO:0000005'", {"GO:0000005": 1}],
)
def test_a_cell_that_does_not_hold_terms_is_refused(cell):
    with pytest.raises(ValueError, match=r"GO id|list of"):
        go_terms.ids(cell)


@pytest.mark.parametrize("form", ["csv", "tsv", "parquet", "jsonl"])
def test_every_kind_of_file_gives_the_same_examples(clone, form):
    rows = [protein(number, go_mf=["GO:0000005", "GO:0000004"], go_cc=[]) for number in range(3)]
    file = f"proteins.{form}"
    if form == "parquet":
        pd.DataFrame(rows).to_parquet(file)
    elif form == "jsonl":
        (clone / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pd.DataFrame(rows).to_csv(file, sep="," if form == "csv" else "\t", index=False)
    found = tasks.read(tasks.load("functions", spec(file, ood=())))
    assert list(found["answer"]) == ["GO:0000005, GO:0000015"] * 3
    assert list(found["id"]) == ["P00000", "P00001", "P00002"]


def test_what_the_ontology_does_not_have_is_left_out_and_counted(clone):
    rows = [
        protein(1, go_mf="GO:0000081, GO:0000093, GO:0099999"),
        protein(2, go_mf="GO:0000081", go_bp=""),
        protein(3, go_mf="GO:0000001", go_bp=""),  # a root says nothing
        protein(4, sequence=protein(1)["sequence"], organism="Mus musculus"),
    ]
    found = examples(rows)
    assert list(found["id"]) == ["P00001"]
    assert list(found["answer"]) == ["GO:0000003, GO:0000015"]
    assert [note.split(":")[0] for note in found.attrs["notes"]] == [
        "3 gold ids left out",
        "2 proteins left out",
        "1 proteins left out",
        "columns that are not read",
    ]
    assert "releases/2026-01-01" in found.attrs["notes"][0]


def test_an_ontology_that_has_none_of_the_terms_is_refused(clone):
    with pytest.raises(UserError, match=r"no protein has a term of go\.obo .*ontology of the release"):
        examples([protein(1, go_mf="GO:0099999", go_bp="")])


def test_rare_residues_become_x_and_long_sequences_are_cut(clone):
    (found,) = examples([protein(1, sequence="muozbjkl")], residues=7).to_dict("records")
    assert found["sequence"] == "MXXXXXK"
    assert "<protein>MXXXXXK</protein>" in found["prompt"]
    (whole,) = examples([protein(1, sequence="M" * 3000)]).to_dict("records")
    assert len(whole["sequence"]) == 2000


def test_columns_may_have_other_names(clone):
    row = protein(1)
    renamed = {
        {"go_mf": "function", "protein_id": "accession", "organism": "species"}.get(k, k): v for k, v in row.items()
    }
    found = examples([renamed], mf="function", id="accession", organism="species", group="species")
    assert list(found["id"]) == ["P00001"]
    assert list(found["group"]) == ["Homo sapiens"]


@pytest.mark.parametrize("column", list(COLUMNS.values()))
def test_a_column_that_is_missing_is_named_with_the_option_that_renames_it(clone, column):
    row = protein(1)
    del row[column]
    (role,) = [role for role, name in COLUMNS.items() if name == column]
    with pytest.raises(UserError, match=rf"proteins\.csv: no column '{column}'\. It has: .*options\.{role}\.$"):
        examples([row])


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"go_bp": "GO:15"}, r"proteins\.csv: row 2: column 'go_bp': 'GO:15' is not a GO id"),
        ({"go_bp": "['GO:0000015'"}, r"row 2: column 'go_bp': .*Give a list of GO ids"),
        ({"sequence": "MK*"}, r"row 2: column 'sequence': letter '\*'"),
        ({"sequence": ""}, r"row 2: column 'sequence' is empty"),
        ({"organism": " "}, r"row 2: column 'organism' is empty"),
        ({"interpro_formatted": "a </think> b"}, r"row 2: column 'interpro_formatted': contains '</think>'"),
        ({"reasoning": "<protein>M</protein>"}, r"row 2: column 'reasoning': contains '<protein>'"),
        ({"protein_id": "P00001"}, r"proteins\.csv: row 1 and proteins\.csv: row 2 .*'P00001'"),
    ],
)
def test_a_wrong_cell_is_refused_with_its_row(clone, cells, message):
    with pytest.raises(UserError, match=message):
        examples([protein(1), protein(2, **cells)])


def test_a_held_out_organism_that_no_protein_has_is_refused(clone):
    table([protein(1)])
    with pytest.raises(UserError, match=r"'Danio rerio'.*'organism'.*Homo sapiens"):
        tasks.read(tasks.load("functions", spec()))


def test_an_ontology_has_to_be_given_and_to_be_there(clone):
    table([protein(1)])
    with pytest.raises(UserError, match=r"tasks\.functions\.options\.ontology: missing"):
        tasks.load("functions", {"adapter": "go-terms", "file": "proteins.csv", "options": {}})
    with pytest.raises(UserError, match=r"other\.obo: no such file"):
        examples([protein(1)], ontology="other.obo")


def split_files(folder, **changed):
    """Files of train, id and ood as BioReason-Pro has them; their paths."""
    counts, start, paths = {"train": 30, "id": 8, "ood": 10}, 0, []
    for split, count in counts.items():
        made = [
            protein(
                start + number, organism="Danio rerio" if split == "ood" else "Homo sapiens", reasoning=["A.", "B."]
            )
            for number in range(count)
        ]
        pd.DataFrame(changed.get(split, made)).to_parquet(folder / f"{split}.parquet", index=False)
        start += count
        paths.append(f"{split}.parquet")
    return paths


def test_given_splits_stay_as_given(clone):
    paths = split_files(clone)
    given = {"adapter": "go-terms", "file": paths, "options": {"ontology": "go.obo"}, "validation": 5}
    splits.prepare("functions", given, 0, clone / "out")
    frames = {which: pd.read_parquet(clone / "out" / f"{which}.parquet") for which in SPLITS}
    assert {which: len(frame) for which, frame in frames.items()} == {"train": 25, "validation": 5, "id": 8, "ood": 10}
    assert set(frames["id"]["id"]) == set(pd.read_parquet(paths[1])["protein_id"])
    assert set(frames["ood"]["id"]) == set(pd.read_parquet(paths[2])["protein_id"])
    assert set(frames["ood"]["group"]) == {"Danio rerio"}
    assert set(frames["train"]["reasoning"]) == {"A.\nB."}
    card = splits.read_card(clone / "out")
    assert "id and ood are those of the data" in card["rule"]
    assert card["notes"][:3] == [f"{split} of the data is {split} here" for split in ("train", "id", "ood")]
    assert card["notes"][-1] == "columns that are not read: structure_path"
    whole = pd.concat([pd.read_parquet(path).assign(split=path.partition(".")[0]) for path in paths])
    whole.to_parquet("all.parquet", index=False)
    splits.prepare("functions", given | {"file": "all.parquet"}, 0, clone / "one")
    for which in SPLITS:
        pd.testing.assert_frame_equal(pd.read_parquet(clone / "one" / f"{which}.parquet"), frames[which])


def test_proteins_of_given_splits_that_are_in_two_of_them_are_left_out_of_train(clone):
    train = [protein(number) for number in range(30)]
    train[3] |= {"sequence": protein(38)["sequence"], "organism": "Danio rerio"}  # the first of ood
    train[4]["sequence"] = train[5]["sequence"]
    given = {"adapter": "go-terms", "file": split_files(clone, train=train), "options": {"ontology": "go.obo"}}
    splits.prepare("functions", given | {"validation": 5}, 0, clone / "out")
    card = splits.read_card(clone / "out")
    assert {entry["reason"]: entry["examples"] for entry in card["dropped"]} == {
        "the sequence of an earlier row": ["P00005"],
        "train, sequence or prompt also in ood": ["P00003"],
    }
    assert set(pd.read_parquet(clone / "out/ood.parquet")["group"]) == {"out of domain"}  # the fish is in train too
    assert "organism of ood and of other splits: Danio rerio" in card["notes"]


def test_splits_that_ood_would_mix_are_refused_unless_they_are_pooled(clone):
    paths = split_files(clone)
    for file in (paths, paths[:2]):
        with pytest.raises(UserError, match=r"tasks\.functions: the data come in splits \(train.*options\.pool"):
            tasks.read(tasks.load("functions", spec(file)))
    pooled = tasks.read(tasks.load("functions", spec(paths, pool=True)))
    assert len(pooled) == 48
    assert pooled["ood"].sum() == 10
    assert "split" not in pooled.columns
    table([protein(1) | {"split": "train"}, protein(2) | {"split": "ood"}])
    with pytest.raises(UserError, match=r"come in splits \(column 'split'\)"):
        tasks.read(tasks.load("functions", spec(ood=())))


def test_one_table_needs_ood_or_split_or_a_column_of_splits(clone):
    table(proteins())
    given = {"adapter": "go-terms", "file": "proteins.csv", "options": {"ontology": "go.obo"}, "validation": 5}
    with pytest.raises(
        UserError, match=r"tasks\.functions\.ood: missing, and proteins\.csv has no column 'split'\. Give"
    ):
        splits.prepare("functions", given, 0, clone / "out")
    assert not (clone / "out").exists()


def test_a_data_set_as_load_dataset_reads_it_keeps_its_splits_or_is_pooled(clone):
    pytest.importorskip("datasets")
    folder = clone / "hub"
    folder.mkdir()
    for split, number in (("train", 1), ("validation", 2), ("test", 3)):
        pd.DataFrame([protein(number, go_mf=["GO:0000005"], go_bp=[], go_cc=[])]).to_parquet(
            folder / f"{split}.parquet"
        )
    given = {"adapter": "go-terms", "hub": "hub", "options": {"ontology": "go.obo"}}
    kept = tasks.read(tasks.load("functions", given))
    assert dict(zip(kept["id"], kept["split"], strict=True)) == {"P00001": "train", "P00002": "id", "P00003": "ood"}
    assert list(kept["ood"]) == [False, False, True]
    with pytest.raises(UserError, match=r"come in splits \(train, validation, test\)"):
        tasks.read(tasks.load("functions", given | {"ood": []}))
    given["options"]["pool"] = True
    found = tasks.read(tasks.load("functions", given | {"ood": []}))
    assert sorted(found["id"]) == ["P00001", "P00002", "P00003"]
    assert list(found["answer"]) == ["GO:0000005"] * 3
    assert set(found.attrs["fingerprint"]) == {"train", "validation", "test"}


def test_new_proteins_are_asked_without_their_terms(clone):
    table([protein(1)])
    task = tasks.load("functions", spec(ood=()))
    row = protein(7, interpro_formatted="")
    for column in ("go_mf", "go_bp", "go_cc", "reasoning"):
        del row[column]
    table([row], "new.csv")
    (found,) = tasks.questions(task, clone / "new.csv").to_dict("records")
    assert found["id"] == "P00007"
    assert found["prompt"] == (
        "Which Gene Ontology terms does this protein of Homo sapiens have?\nInterPro: none\n"
        f"GO-GPT: GO:0000004, GO:0000014\n<protein>{row['sequence']}</protein>\n"
    )


def test_weights_are_none_or_from_train_or_from_a_file(clone):
    train = pd.DataFrame({"answer": ["GO:0000005", "GO:0000004", "GO:0000014"]})
    assert go_terms.terms(spec(), train).weights is None
    computed = go_terms.terms(spec(weights="train"), train)
    assert computed.weights == gene_ontology.information_accretion(
        [["GO:0000005"], ["GO:0000004"], ["GO:0000014"]], computed
    )
    assert computed.weight("GO:0000003") == 1.0  # one of the two with a function
    (clone / "ia.tsv").write_text("GO:0000004\t2.5\n")
    read = go_terms.terms(spec(weights="ia.tsv"), train)
    assert (read.weight("GO:0000004"), read.weight("GO:0000005")) == (2.5, 0.0)


def test_files_that_the_task_is_made_of_are_its_sources(clone):
    table([protein(1)])
    assert tasks.load("functions", spec(weights="ia.tsv")).sources == ("proteins.csv", "go.obo", "ia.tsv")
    assert tasks.load("functions", spec(weights="train")).sources == ("proteins.csv", "go.obo")


def proteins(count=60):
    """Proteins of two organisms, with one to four random terms each."""
    rng = np.random.default_rng(0)
    return [
        protein(
            number,
            organism="Danio rerio" if number % 4 == 0 else "Homo sapiens",
            go_mf=", ".join(rng.choice(LIVE, rng.integers(1, 5), replace=False)),
            go_bp="",
        )
        for number in range(count)
    ]


def test_the_splits_have_their_ontology_beside_them_and_are_the_same_when_made_again(clone):
    table(proteins())
    given = spec(weights="train") | {"train": 20, "validation": 5, "id": 10}
    for folder in ("one", "two"):
        splits.prepare("functions", given, 0, clone / folder)
    for path in (clone / "one").iterdir():
        assert path.read_bytes() == (clone / "two" / path.name).read_bytes()
    card = splits.read_card(clone / "one")
    space = answers.load_space(card, clone / "one")
    train = pd.read_parquet(clone / "one" / "train.parquet")
    assert space.ontology == go_terms.terms(given, train)
    assert card["answers"]["kind"] == "terms"
    assert card["labels"] == []
    assert set(pd.read_parquet(clone / "one" / "ood.parquet")["group"]) == {"Danio rerio"}
    for split in SPLITS:
        frame = pd.read_parquet(clone / "one" / f"{split}.parquet")
        written = [answers.completion(*row) for row in zip(frame["reasoning"], frame["answer"], strict=True)]
        assert [space.parse(text) for text in written] == list(frame["answer"])
    perfect = space.score(list(train["answer"]), list(train["answer"]), resamples=10)
    assert perfect["f1_micro"]["value"] == perfect["accuracy"]["value"] == 1.0


def test_baselines_of_sets_of_terms_are_the_frequent_set_and_the_vote_of_the_neighbours(clone):
    motifs = {"GO:0000005": "WWCHW", "GO:0000015": "KRKKR", "GO:0000022": "DEDED"}
    rng = np.random.default_rng(3)
    rows = []
    for number in range(160):
        has = rng.choice(sorted(motifs), rng.integers(1, 3), replace=False)
        blank = ["".join(rng.choice(list("AGS"), 5)) for _ in motifs]
        parts = [motifs[term] if term in has else part for term, part in zip(sorted(motifs), blank, strict=True)]
        rows.append(
            protein(
                number,
                sequence="".join(parts) + "".join(rng.choice(list("AGS"), 12)),
                organism="Danio rerio" if number % 4 == 0 else "Homo sapiens",
                go_mf=", ".join(has),
                go_bp="",
            )
        )
    table(rows)
    splits.prepare("functions", spec() | {"train": 80, "validation": 20, "id": 20}, 0, clone / "data")
    card = splits.read_card(clone / "data")
    space = answers.load_space(card, clone / "data")
    for folder in ("one", "two"):
        baselines.run(clone / "data", clone / folder, space, card, seed=0, bootstrap=50)
    for path in (clone / "one").iterdir():
        assert path.read_bytes() == (clone / "two" / path.name).read_bytes()
    scores = json.loads((clone / "one" / "metrics.json").read_text())
    assert set(scores) == {"majority", "knn"}
    train = pd.read_parquet(clone / "data" / "train.parquet")
    frequent = answers.join(term_sets.frequent(map(answers.split, train["answer"]), space.ontology))
    for split in ("id", "ood"):
        said = pd.read_parquet(clone / "one" / f"{split}.parquet")
        assert set(said["predicted"][said["baseline"] == "majority"]) == {frequent}
        assert scores["knn"][split]["f1_micro"]["value"] > 0.95
        assert scores["majority"][split]["f1_micro"]["value"] < 0.9
        assert scores["knn"][split]["accuracy"]["n"] == len(said) / 2
    choices = json.loads((clone / "one" / "choices.json").read_text())
    assert set(choices["knn"]) == {"n_neighbors", "validation_f1_micro"}
