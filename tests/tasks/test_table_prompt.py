"""Tables whose prompts have no sequence, several, or other columns: an example is a prompt, not a sequence."""

import itertools
import random

import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from cisterna import tasks
from cisterna.constants import SPLITS
from cisterna.data import splits
from cisterna.data.audit import audit_folder
from cisterna.data.holdout import hold_out
from cisterna.errors import UserError
from cisterna.sequences.windows import tagged_stretches
from cisterna.tasks import catalog
from tiny import READING

EFFECTS = {
    "modality": "text",
    "columns": {"id": "row", "label": "effect", "group": "cell_line"},
    "labels": ["up", "down", "none"],
    "prompt": "{perturbation} is knocked down in {cell_line}. What does {gene} do? {options}",
    "ood": ["K562"],
    "train": "all",
    "validation": 10,
    "id": 20,
}
PAIRS = {
    "modality": "rna",
    "columns": {"id": "row", "label": "effect", "group": "cell_line", "sequence": {"wild": "wt", "mutant": "mut"}},
    "labels": ["up", "down", "none"],
    "prompt": "{mutant} instead of {wild} in {cell_line}: {options}",
    "ood": ["K562"],
    "train": "all",
    "validation": 10,
    "id": 20,
}


def effects(count=200):
    """Rows of a challenge without sequences: perturbed gene, measured gene and cell line, each triple once."""
    draw = random.Random(0)
    genes = [f"GENE{number}" for number in range(12)]
    triples = draw.sample(list(itertools.product(genes, genes, ["K562", "RPE1", "HepG2"])), count)
    rows = pd.DataFrame(triples, columns=["perturbation", "gene", "cell_line"])
    return rows.assign(row=[f"r{n}" for n in range(count)], effect=draw.choices(EFFECTS["labels"], k=count))


def pairs(count=120):
    draw = random.Random(1)
    rows = effects(count).drop(columns=["perturbation", "gene"])
    for column in ("wt", "mut"):
        rows[column] = ["".join(draw.choices("ACGU", k=draw.randint(8, 12))) for _ in range(count)]
    return rows


def load(folder, frame, entry=EFFECTS, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_csv(folder / "table.csv", index=False)
    return tasks.load("mine", entry | {"file": str(folder / "table.csv")} | changes)


def read(folder, frame, entry=EFFECTS, **changes):
    return tasks.read(load(folder, frame, entry, **changes))


def prepare(folder, frame, entry=EFFECTS, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_csv(folder / "table.csv", index=False)
    splits.prepare("mine", entry | {"file": str(folder / "table.csv")} | changes, 0, folder / "out")
    frames = {which: pd.read_parquet(folder / f"out/{which}.parquet") for which in SPLITS}
    return frames, splits.read_card(folder / "out")


def conflicting():
    """Three rows of one prompt: up, down, down; and two of another: up, none."""
    frame = effects()
    content = ["perturbation", "gene", "cell_line"]
    frame.loc[[1, 2], content] = frame.loc[0, content].to_numpy()
    frame.loc[[0, 1, 2], "effect"] = ["up", "down", "down"]
    frame.loc[4, content] = frame.loc[3, content].to_numpy()
    frame.loc[[3, 4], "effect"] = ["up", "none"]
    return frame


# --- Without sequences ---


def test_a_column_of_the_prompt_with_the_text_na_is_read_as_it_is_and_said(tmp_path):
    frame = effects()
    frame.loc[[3, 8], "gene"] = "NA"
    examples = read(tmp_path, frame)
    assert "What does NA do?" in examples["prompt"][3]
    assert "column 'gene': the text 'NA' is read as it is (rows: 2)" in examples.attrs["notes"]


def test_every_row_of_a_table_without_sequences_is_an_example(tmp_path):
    frames, card = prepare(tmp_path, effects())
    everything = pd.concat(frames.values())
    assert len(everything) == 200
    assert sum(counted["rows"] for counted in card["splits"].values()) == 200
    assert card["modality"] == "text"
    assert "dropped" not in card
    found = everything.set_index("id").loc["r0"]
    row = effects().iloc[0]
    assert found["prompt"] == (
        f"{row.perturbation} is knocked down in {row.cell_line}. What does {row.gene} do? up, down, none\n"
    )
    assert len(found["segments"]) == 0


def test_distances_of_prompts_without_sequences_are_skipped_and_the_card_says_so(tmp_path):
    _, card = prepare(tmp_path, effects())
    assert card["audit"]["nearest_train"] == {}
    assert "no sequences" in card["audit"]["skipped"][0]
    assert audit_folder(tmp_path / "out") == card["audit"]


def test_new_rows_without_sequences_are_asked_about(tmp_path):
    task = load(tmp_path, effects())
    new = effects().head(3).drop(columns=["effect", "row"])
    new.to_csv(tmp_path / "new.csv", index=False)
    asked = tasks.questions(task, tmp_path / "new.csv")
    assert list(asked["id"]) == ["1", "2", "3"]
    assert list(asked["prompt"]) == list(tasks.read(task)["prompt"].head(3))
    assert "sequence" not in asked


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"modality": "dna"}, r"columns\.sequence: missing.*modality: text"),
        ({"columns": EFFECTS["columns"] | {"sequence": "gene"}}, r"columns\.sequence: not supported"),
        ({"prompt": "What happens?"}, "prompt: the same for every row"),
        ({"ood": None, "split": {"by": "similarity", "ood": 0.2, "threshold": 0.4}}, "needs a sequence in the prompt"),
    ],
)
def test_what_needs_a_sequence_is_refused(tmp_path, change, pattern):
    with pytest.raises(UserError, match=pattern):
        prepare(tmp_path, effects(), **change)
    assert not (tmp_path / "out").exists()


# --- Duplicates and conflicts ---


def test_the_same_prompt_with_the_same_label_is_one_example_and_counted(tmp_path, capsys):
    frame = effects()
    content = ["perturbation", "gene", "cell_line", "effect"]
    frame.loc[7, content] = frame.loc[2, content].to_numpy()
    frames, card = prepare(tmp_path, frame)
    assert sum(map(len, frames.values())) == 199
    assert card["dropped"] == [
        {"reason": "the prompt of another row, with its label", "rows": 1, "examples": ["row 8 (id r7)"]}
    ]
    assert "rows left out: 1: the prompt of another row, with its label (row 8 (id r7))" in capsys.readouterr().out


def test_a_conflict_names_two_rows(tmp_path):
    with pytest.raises(UserError, match=r"row 1 and row 2 have the same prompt but different labels.*`conflicts`"):
        read(tmp_path, conflicting())


def test_the_majority_wins_and_a_tie_is_dropped(tmp_path):
    examples = read(tmp_path, conflicting(), conflicts="majority")
    assert set(examples["id"]) & {"r0", "r1", "r2", "r3", "r4"} == {"r1"}
    assert examples.set_index("id")["answer"]["r1"] == "down"
    assert {entry["reason"]: entry["rows"] for entry in examples.attrs["dropped"]} == {
        "another label than most rows with the same prompt": 1,
        "the same prompt with different labels, no majority": 2,
        "the prompt of another row, with its label": 1,
    }


def test_conflicts_can_be_dropped(tmp_path):
    examples = read(tmp_path, conflicting(), conflicts="drop")
    assert not set(examples["id"]) & {"r0", "r1", "r2", "r3", "r4"}
    (entry,) = examples.attrs["dropped"]
    assert (entry["rows"], len(entry["examples"])) == (5, 5)


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.sampled_from(["up", "down"])), min_size=1),
    st.sampled_from(["majority", "drop"]),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_is_an_example_or_counted_and_no_prompt_is_left_twice(tmp_path, cells, rule):
    genes, drugs, labels = zip(*cells, strict=True)
    frame = pd.DataFrame(
        {"row": range(len(cells)), "gene": genes, "drug": drugs, "effect": labels, "cell_line": "K562"}
    )
    examples = read(tmp_path, frame, prompt="{gene} {drug} {options}", conflicts=rule)
    assert len(examples) + sum(entry["rows"] for entry in examples.attrs["dropped"]) == len(frame)
    assert not examples["prompt"].duplicated().any()


def test_an_id_in_the_prompt_does_not_make_two_examples_of_one(tmp_path):
    frame = conflicting()
    with pytest.raises(UserError, match="row 1 and row 2 have the same prompt"):
        read(tmp_path, frame, prompt="{row}: {perturbation} {gene} {cell_line} {options}")


def test_the_same_sequence_in_another_context_is_another_example(tmp_path):
    frame = pairs()
    frame["wt"] = frame["wt"].iloc[0]
    changes = {"columns": PAIRS["columns"] | {"sequence": "wt"}, "prompt": "{sequence} {row} {mut} {options}"}
    frames, card = prepare(tmp_path, frame, PAIRS, **changes)
    assert sum(map(len, frames.values())) == 120
    assert card["by_prompt"]
    changes["prompt"] = "{sequence} {row} {options}"  # a sequence and nothing else but a name: as strict as ever
    with pytest.raises(UserError, match="have the same sequence but different"):
        prepare(tmp_path / "strict", frame, PAIRS, **changes)


# --- Several sequences ---


def test_each_sequence_is_tagged_and_has_its_segment(tmp_path):
    changes = {"modality": {"wild": "dna", "mutant": "rna"}}
    frame = pairs().assign(wt=pairs()["wt"].str.replace("U", "T"))
    example = read(tmp_path, frame, PAIRS, **changes).iloc[0]
    row = frame.iloc[0]
    assert example["prompt"] == (
        f"<rna>{row.mut}</rna> instead of <dna>{row.wt}</dna> in {row.cell_line}: up, down, none\n"
    )
    assert [part["sequence"] for part in example["segments"]] == [row.mut, row.wt]
    assert tagged_stretches(example["prompt"]) == [row.mut, row.wt]
    assert load(tmp_path, frame, PAIRS, **changes).modality == "dna+rna"
    with pytest.raises(UserError, match=r"row \d+: column 'wt': letter 'U' at position"):
        read(tmp_path, pairs(), PAIRS, **changes)


def test_each_sequence_has_its_position(tmp_path):
    columns = PAIRS["columns"] | {"position": {"mutant": "at", "wild": "from"}}
    example = read(tmp_path, pairs().assign(**{"at": 3, "from": 8}), PAIRS, columns=columns).iloc[0]
    assert [part["center"] for part in example["segments"]] == [2, 7]


def test_each_sequence_has_its_distances(tmp_path):
    _, card = prepare(tmp_path, pairs(), PAIRS)
    assert set(card["audit"]["nearest_train"]["ood"]) == {"wild", "mutant"}
    assert audit_folder(tmp_path / "out") == card["audit"]


def test_new_rows_with_several_sequences_are_asked_about(tmp_path):
    task = load(tmp_path, pairs(), PAIRS)
    new = pairs().head(3).rename(columns={"wt": "wild"})
    new.to_csv(tmp_path / "new.csv", index=False)
    assert list(tasks.questions(task, tmp_path / "new.csv")["prompt"]) == list(tasks.read(task)["prompt"].head(3))
    # A table of examples must have the columns that the config names.
    with pytest.raises(UserError, match=r"no column 'wt' \(columns\.sequence\.wild\)"):
        read(tmp_path, pairs().rename(columns={"wt": "wild"}).assign(wild=1), PAIRS)


def test_an_encoder_reads_sequences_of_one_modality(tmp_path):
    assert catalog.residues("mine", PAIRS | {"file": "x"})
    assert not catalog.residues("mine", PAIRS | {"file": "x", "modality": {"wild": "dna", "mutant": "rna"}})
    assert not catalog.residues("mine", EFFECTS | {"file": "x"})


# --- Values of several columns held out ---


UNSEEN = {"columns": {"id": "row", "label": "effect"}}
LISTED = UNSEEN | {"ood": {"gene": ["GENE1"], "perturbation": ["GENE2", "GENE3"]}}
DRAWN = UNSEEN | {"ood": "all", "split": {"by": "group", "column": ["gene", "perturbation"], "ood": 0.3}}


@pytest.mark.parametrize("changes", [LISTED, DRAWN], ids=["listed", "drawn"])
def test_held_out_values_are_in_ood_only_and_each_kind_is_a_group(tmp_path, changes):
    frames, card = prepare(tmp_path, effects(), **changes)
    known = effects().set_index("row")
    inside = pd.concat([frames[which] for which in ("train", "validation", "id")]).join(known[["gene"]], on="id")
    inside["perturbation"] = known["perturbation"][inside["id"]].to_numpy()
    for column, values in card["unseen"].items():
        assert not set(inside[column]) & set(values)
    assert set(inside["group"]) == {"seen"}
    for row in frames["ood"].itertuples():
        unseen = [column for column, values in card["unseen"].items() if known[column][row.id] in values]
        assert row.group == f"unseen {' and '.join(unseen)}"
    kinds = {"unseen gene", "unseen perturbation", "unseen gene and perturbation"}
    assert set(card["splits"]["ood"]["groups"]) == kinds
    assert audit_folder(tmp_path / "out") == card["audit"]


def test_drawn_values_have_about_the_share_of_the_rows_whatever_their_order(tmp_path):
    frames, card = prepare(tmp_path / "a", effects(), **DRAWN)
    assert 0.2 < len(frames["ood"]) / 200 < 0.4
    _, again = prepare(tmp_path / "b", effects().sample(frac=1, random_state=1), **DRAWN)
    assert again["files"] == card["files"]


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("uvwxyz")), min_size=20, max_size=36, unique=True),
    st.sampled_from([0.2, 0.3, 0.5]),
    st.integers(0, 3),
)
@settings(max_examples=50)
def test_no_held_out_value_is_in_domain_whatever_the_table(pairs, share, seed):
    genes, drugs = zip(*pairs, strict=True)
    frame = pd.DataFrame({"id": range(len(pairs)), "split:gene": genes, "split:drug": drugs}).astype(str)
    try:
        found = hold_out(frame, {"by": "group", "column": ["gene", "drug"], "ood": share}, seed, "mine")
    except UserError as error:
        assume("no choice" not in str(error) and "not near" not in str(error))
        raise
    inside, outside = found.examples[~found.examples["ood"]], found.examples[found.examples["ood"]]
    assert share / 2 <= len(outside) / len(frame) <= 2 * share
    for column, values in found.unseen.items():
        assert values
        assert not set(inside[f"split:{column}"]) & set(values)
        assert outside["group"][outside[f"split:{column}"].isin(values)].str.contains(column).all()


def test_audit_finds_a_held_out_value_that_came_into_train_afterwards(tmp_path):
    frames, _ = prepare(tmp_path, effects(), **LISTED)
    frames["train"].loc[3, "split:gene"] = "GENE1"
    frames["train"].to_parquet(tmp_path / "out" / "train.parquet")
    with pytest.raises(UserError, match=r"row 4 of train .*'GENE1' in 'gene', a value that is held out"):
        audit_folder(tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"ood": {"gene": ["GENE99"]}}, r"no row has the group 'GENE99' of `ood`. Column 'gene' has"),
        ({"ood": {"genes": ["GENE1"]}}, r"no column 'genes' \(ood\.genes\)"),
        (DRAWN | {"split": DRAWN["split"] | {"column": ["genes", "gene"]}}, r"no column 'genes' \(split\.column\)"),
        (
            DRAWN | {"split": DRAWN["split"] | {"column": ["gene", "cell_line"], "ood": 0.1}},
            r"column 'cell_line' \(5% of the rows by each column, 10% by all\): no choice",
        ),
    ],
)
def test_values_that_cannot_be_held_out(tmp_path, changes, pattern):
    with pytest.raises(UserError, match=pattern):
        prepare(tmp_path, effects(), **UNSEEN | changes)


def test_one_of_several_sequences_is_held_out_by_similarity(tmp_path):
    columns = {name: column for name, column in PAIRS["columns"].items() if name != "group"}
    split = {"by": "similarity", "ood": 0.2, "threshold": 0.5}
    changes = {"columns": columns, "ood": "all", "split": split | {"column": "mutant"}}
    _, card = prepare(tmp_path, pairs(), PAIRS, **changes)
    assert card["audit"]["held_out"]["sequence"] == "mutant"
    assert card["audit"]["held_out"]["least"] >= 0.5
    assert audit_folder(tmp_path / "out") == card["audit"]
    with pytest.raises(UserError, match="needs `column`, one of mutant, wild"):
        prepare(tmp_path / "b", pairs(), PAIRS, **changes | {"split": split})


def test_a_column_of_three_values_has_three(tmp_path):
    """Of a table whose rows share a sequence one row was left, and the column had one value."""
    changes = UNSEEN | {"ood": "all", "split": {"by": "group", "column": "cell_line", "ood": 0.3}}
    frames, _ = prepare(tmp_path, effects(), **changes)
    assert set(frames["ood"]["group"]) < {"K562", "RPE1", "HepG2"}
    one = effects().assign(cell_line="K562")
    with pytest.raises(UserError, match=r"the \d+ examples have only one, 'K562'"):
        prepare(tmp_path / "b", one, conflicts="drop", **changes)


def test_a_bank_has_the_features_of_every_sequence(tmp_path, esm):
    from cisterna.sequences import feature_bank

    frames, _ = prepare(tmp_path, pairs(), PAIRS)
    feature_bank.build_for_task(esm, tmp_path / "out", READING | {"flank": 100}, tmp_path / "work", tmp_path / "bank")
    bank = feature_bank.Bank(tmp_path / "bank")
    for row in pd.concat(frames.values()).itertuples():
        for part in row.segments:
            assert bank.locate(part["sequence"])[1] == len(part["sequence"])
