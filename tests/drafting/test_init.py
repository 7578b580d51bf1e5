"""`cisterna init`: three kinds of table become studies that are valid; what is not clear is asked or refused."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cisterna import cli, study
from cisterna.constants import SPLITS
from cisterna.data import splits
from cisterna.drafting import budget, yaml_text

OUTPUT = Path("my-study.yaml")
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"


def variants(rows: int = 240) -> pd.DataFrame:
    """Variants of one protein with a measured score: no classes, no groups."""
    draw = random.Random(1)
    parent = "".join(draw.choices(AMINO_ACIDS, k=40))
    found: dict[str, float] = {}
    while len(found) < rows:
        letters = list(parent)
        for site in draw.sample(range(40), draw.randint(1, 6)):
            letters[site] = draw.choice(AMINO_ACIDS)
        found["".join(letters)] = round(draw.gauss(0, 2), 3)
    return pd.DataFrame(
        {"variant": [f"v{number}" for number in range(rows)], "seq": list(found), "fitness": list(found.values())}
    )


def pairs() -> pd.DataFrame:
    """Pairs of genes with a label: no sequence, no id."""
    draw = random.Random(2)
    genes = [f"GEN{letter}{number}" for letter in "ABC" for number in range(8)]
    every = [(one, two) for one, two in itertools.permutations(genes, 2) if draw.random() < 0.6]
    labels = ["synthetic lethal" if one[3] == two[3] else "neutral" for one, two in every]
    return pd.DataFrame({"gene_a": [a for a, _ in every], "gene_b": [b for _, b in every], "effect": labels})


def families(rows: int = 240) -> pd.DataFrame:
    """DNA in families with a label."""
    draw = random.Random(3)
    return pd.DataFrame(
        {
            "name": [f"s{number}" for number in range(rows)],
            "dna": ["".join(draw.choices("ACGT", k=draw.randint(30, 40))) for _ in range(rows)],
            "family": [f"fam-{number % 12}" for number in range(rows)],
            "class": [draw.choice(["promoter", "other"]) for _ in range(rows)],
        }
    )


def switches() -> pd.DataFrame:
    """Every combination of five values that are on or off: nothing of which a fifth can be held out."""
    rows = list(itertools.product(["on", "off"], repeat=5))
    frame = pd.DataFrame(rows, columns=[f"switch {name}" for name in "abcde"])
    return frame.assign(**{"class": [str(row.count("on") % 2) for row in rows]})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(frame: pd.DataFrame, name: str = "table.csv") -> str:
    frame.to_csv(name, index=False)
    return name


def init(*words: str) -> int:
    return cli.main(["init", *words])


def drafted(*words: str) -> tuple[dict[str, Any], str]:
    """The task and the text of a draft that is written, valid, and whose job `data` works."""
    assert init(*words) == 0
    text, read = OUTPUT.read_text(encoding="utf-8"), study.read(OUTPUT)
    (name,) = read.tasks
    splits.prepare(name, read.spec(name), 0, Path("results/data") / name)
    return read.config["tasks"][name], text


def card() -> dict[str, Any]:
    (path,) = Path("results/data").glob("*/card.json")
    return json.loads(path.read_text())


def asked(text: str) -> str:
    """The questions of a draft, in one line."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.split("# QUESTIONS", 1)[1].splitlines()[1:])
    return " ".join(" ".join(lines).replace("#", " ").split())


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The message of a command that writes nothing."""
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert init(*words) == 2
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    return message


# --- Three kinds of table ---


def test_a_score_is_cut_where_the_user_says(folder: Path) -> None:
    table = save(variants())
    task, _ = drafted(table, "--label", "fitness", "--threshold", "-0.5", "--classes", "impaired", "functional")
    assert task["modality"] == "protein"
    assert task["columns"] == {"id": "variant", "sequence": "seq", "label": "fitness"}
    assert (task["thresholds"], task["labels"]) == ([-0.5], ["impaired", "functional"])
    assert task["split"]["by"] == "similarity"
    truth = variants().set_index("variant")["fitness"]
    rows = pd.concat(pd.read_parquet(f"results/data/table/{split}.parquet") for split in SPLITS)
    assert [answer == "functional" for answer in rows["answer"]] == list(truth[rows["id"]] >= -0.5)


def test_a_table_of_names_becomes_prompts_of_text_with_unseen_values_of_both(folder: Path) -> None:
    task, text = drafted(save(pairs()))
    assert task["modality"] == "text"
    assert task["columns"] == {"label": "effect"}
    assert task["prompt"].count("{gene_a}") == task["prompt"].count("{gene_b}") == 1
    assert task["split"] == {"by": "group", "column": ["gene_a", "gene_b"], "ood": 0.3}
    assert "(number of the row)" in text
    assert "values in common" in asked(text)


def test_families_are_held_out_whole(folder: Path) -> None:
    families().to_parquet("table.parquet")
    task, text = drafted("table.parquet")
    assert task["modality"] == "dna"
    assert task["columns"] == {"id": "name", "sequence": "dna", "label": "class"}
    assert task["split"] == {"by": "group", "column": "family", "ood": 0.2}
    assert "split: {by: similarity" in text  # another way, with what it would hold


@pytest.mark.parametrize("make", [pairs, families])
def test_the_draft_says_what_the_job_data_then_writes(folder: Path, make: Any) -> None:
    task, text = drafted(save(make()))
    for split, held in card()["splits"].items():
        counts = [held["rows"], *(held["labels"][label] for label in task["labels"])]
        assert f"# {split} {' '.join(map(str, counts))}" in " ".join(text.split())


def test_the_study_is_estimated_to_fit_ten_minutes(folder: Path) -> None:
    init(save(families(3000)))
    config = study.read(OUTPUT).config
    size = budget.Size(80, 24, 70, 14)
    assert budget.seconds(config, "table", size) <= 600
    assert config["tasks"]["table"]["train"] >= 1000


def test_long_sequences_get_a_longer_backbone_and_less_training(folder: Path) -> None:
    draw = random.Random(5)
    long = families().assign(dna=["".join(draw.choices("ACGT", k=900)) for _ in range(240)])
    init(save(long))
    config = study.read(OUTPUT).config
    assert config["backbones"]["nano"]["architecture"]["max_position_embeddings"] >= 960
    assert config["recipes"]["sft"]["ladder"]["max_length"] >= 960
    init(save(families(), "short.csv"), "--output", "short.yaml")
    short = study.read(Path("short.yaml")).config
    assert (
        len(config["seeds"]) * config["tasks"]["table"]["train"]
        < len(short["seeds"]) * short["tasks"]["short"]["train"]
    )


def test_what_to_type_next_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init(save(families()), "--output", "a study.yaml")
    printed = capsys.readouterr().out
    assert "cisterna plan --config 'a study.yaml'" in printed
    assert "--configfile 'a study.yaml'" in printed
    assert cli.main(["plan", "--config", "a study.yaml"]) == 0


# --- Questions ---


def test_questions_are_in_the_file_and_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = families().assign(species="mouse", tissue=[None, *["liver"] * 239], name=["x", *families()["name"][:-1]])
    frame.loc[5, "name"] = "x"
    table = save(frame.assign(split=["train", "test"] * 120, reads=range(0, 480, 2)))
    _, text = drafted(table)
    printed = capsys.readouterr().out
    for question in (
        'Column "species" is "mouse" in every row',
        'Column "tissue" is empty in 1 of 240 rows',
        'No column is different in every row ("name" is repeated: "x" is there 2 times)',
        'Column "split" seems to say how the rows were split',
        'Column "reads" has numbers',
    ):
        assert question in asked(text)
        assert question in printed


def test_a_label_that_no_row_has_is_noted_in_the_card(folder: Path) -> None:
    drafted(save(families()))
    config = yaml.safe_load(OUTPUT.read_text())
    config["tasks"]["table"]["labels"].append("enhancer")
    splits.prepare("table", study.load(config).spec("table"), 0, Path("results/data/again"))
    assert (
        "no row has the label enhancer: check `labels`"
        in json.loads(Path("results/data/again/card.json").read_text())["notes"]
    )


def test_a_common_label_is_pointed_out(folder: Path) -> None:
    _, text = drafted(save(families().assign(**{"class": ["other", "other", "other", "promoter"] * 60})))
    assert '180 of 240 rows have the label "other"' in asked(text)


def test_a_sequence_that_never_changes_is_not_shown(folder: Path) -> None:
    task, text = drafted(save(families().assign(parent="ACGT" * 10)))
    assert task["columns"]["sequence"] == "dna"
    assert 'Column "parent" is "' in asked(text)


def test_short_sequences_of_dna_letters_may_be_peptides(folder: Path) -> None:
    draw = random.Random(4)
    short = ["".join(draw.choices("ACGT", k=10)) for _ in range(240)]
    _, text = drafted(save(families().assign(dna=short)))
    assert 'Is "dna" dna, as was taken, or short peptides?' in asked(text)


def test_a_column_that_tells_the_label_is_not_shown_to_the_model(folder: Path) -> None:
    frame = pairs()
    task, text = drafted(save(frame.assign(code=frame["effect"].map({"neutral": "N0", "synthetic lethal": "S1"}))))
    assert "{code}" not in task["prompt"]
    assert 'Column "code" tells the label' in asked(text)


def test_rows_with_one_sequence_and_two_labels_are_dropped_and_asked_about(folder: Path) -> None:
    frame = families()
    frame.loc[1, "dna"] = frame.loc[0, "dna"]
    frame.loc[[0, 1], "class"] = ["promoter", "other"]
    task, text = drafted(save(frame))
    assert task["conflicts"] == "drop"
    assert "2 rows are left out: the same sequence with different labels" in asked(text)


def test_a_label_without_a_name_that_says_so_is_asked_about(folder: Path) -> None:
    task, text = drafted(save(families().rename(columns={"class": "kit"})))
    assert task["columns"]["label"] == "kit"
    assert 'Is "kit" the label?' in asked(text)


def test_unusual_letters_of_dna_are_masked_and_asked_about(folder: Path) -> None:
    frame = families()
    frame.loc[7, "dna"] = "ACGTRYACGTACGTTTTACG"
    task, text = drafted(save(frame))
    assert task["unusual_letters"] == "mask"
    assert "with unusual letters (R, Y, S, W, K, M, B, D, H, V): 1." in asked(text)


def test_what_may_be_the_same_is_asked_about(folder: Path) -> None:
    frame = pairs()
    frame.loc[:19, "effect"] = frame["effect"][:20].str.capitalize()
    frame = frame.assign(line=["K562", "n/a", "HeLa"] * (len(frame) // 3) + ["HeLa"] * (len(frame) % 3))
    _, text = drafted(save(frame))
    for question in (
        '"Neutral" and "neutral" are different values of "effect"',
        '"n/a" is a value of "line", in',
        'pairs of "gene_a" and "gene_b" are there in both orders',
        "`ood: {gene_a: [A, B], gene_b: [A, B]}`",
    ):
        assert question in asked(text)


def test_sequences_that_are_all_unlike_each_other_are_not_said_to_be_near(folder: Path) -> None:
    _, text = drafted(save(families()))
    assert "hardly further from train" not in asked(text)


@pytest.mark.parametrize(("separator", "name", "said"), [(";", "t.csv", "semicolons"), (",", "t.tsv", "commas")])
def test_another_separator_is_named(folder: Path, capsys: pytest.CaptureFixture[str], separator, name, said) -> None:
    families().to_csv(name, index=False, sep=separator)
    assert f"its fields seem to be separated by {said}" in refused(capsys, name)


def test_texts_without_groups_are_held_out_at_random_and_that_is_asked_about(folder: Path) -> None:
    draw = random.Random(6)
    smiles = ["".join(draw.choices("CNOc1()=", k=20)) for _ in range(200)]
    task, text = drafted(save(pd.DataFrame({"smiles": smiles, "toxic": ["yes", "no"] * 100})))
    assert task["split"] == {"by": "group", "column": "smiles", "ood": 0.2}
    assert "Out of domain are rows at random" in asked(text)


def test_several_sequences_stand_in_one_prompt(folder: Path) -> None:
    draw = random.Random(7)
    peptides, receptors = (["".join(draw.choices(AMINO_ACIDS, k=size)) for _ in range(200)] for size in (9, 30))
    allele = [f"A{number % 10}" for number in range(200)]
    frame = {"peptide": peptides, "receptor": receptors, "allele": allele, "binds": ["yes", "no"] * 100}
    task, _ = drafted(save(pd.DataFrame(frame)))
    assert task["columns"]["sequence"] == {"peptide": "peptide", "receptor": "receptor"}
    assert task["prompt"].startswith("{peptide} and {receptor}")


# --- Refusals ---


@pytest.mark.parametrize(
    ("frame", "words", "message"),
    [
        (variants(), [], '"fitness" may be. Choose one, such as --label fitness --threshold X'),
        (variants(), ["--label", "fitness"], "different numbers (quartiles: "),
        (variants(), ["--label", "activity"], "no column 'activity' (--label). It has: variant, seq, fitness"),
        (
            variants(),
            ["--threshold", "99"],
            'no rows would be "high"; expected 10 or more. Move a threshold',
        ),
        (variants().assign(seq=variants()["seq"] + "*"), ["--threshold", "0"], "'*' at position 41 is a stop"),
        (pairs().assign(gene_b=["", *pairs()["gene_b"][1:]]), [], 'column "gene_b" is empty in row 1, and has a value'),
        (families().assign(family=["", *families()["family"][1:]]), [], 'column "family" is empty in row 1, and has a'),
        (pairs()[["gene_a", "effect"]], [], "which does not tell these rows apart"),
        (families().assign(dna=["n/a", *families()["dna"][1:]]), [], "letter '/' at position 2 is not a letter of dna"),
        (
            families().assign(rating=[1, 2, 3, 4] * 60, weight=[row / 7 for row in range(240)]),
            ["--threshold", "2"],
            'several columns have numbers ("rating", "weight")',
        ),
        (variants(), ["--threshold", "nan"], "--threshold: expected finite numbers, not nan"),
        (pairs().assign(effect=["<think>", *pairs()["effect"][1:]]), [], "If it is not the label, name another column"),
        (
            families().assign(reasoning=["", *["it looks like one of these"] * 239]),
            [],
            "the reasoning, is empty in row 1",
        ),
        (variants(), ["--threshold", "0", "--classes", "low"], "--classes: 1 names, but the thresholds make 2 classes"),
        (variants(), ["--label", "variant", "--threshold", "0"], "'v0' is not a number, which `thresholds` could cut"),
        (families(), ["--classes", "low", "high"], "--classes: only with --threshold"),
        (families(), ["--threshold", "0"], "--threshold: no column has numbers to cut"),
        (families().assign(label="a"), ["--label", "label"], 'is "a" in every row'),
        (families().assign(effect=["up", "down"] * 120), [], 'which column is the label? "class", "effect" may be.'),
        (families().assign(**{"class": ["a<b", "c"] * 120}), [], "expected one line without <"),
        (families().assign(dna=["ACGT-ACGTAC", *families()["dna"][1:]]), [], "'-' at position 5 is a gap"),
        (families().assign(**{"class": ["", *["a", "b"] * 119, "a"]}), [], "the label, is empty in row 1. Fill"),
        (families().assign(dna=["", *families()["dna"][1:]]), [], 'column "dna", a sequence, is empty in row 1'),
        (families()[["family", "class"]].assign(family="one"), [], "none is left that a prompt could show"),
        (switches(), ["--label", "class"], "no way to hold out rows"),
        (families(20), [], "20 examples are too few: they leave 12 to train on. Expected at least 16"),
    ],
    ids=lambda value: "" if isinstance(value, pd.DataFrame) else " ".join(value) if isinstance(value, list) else value,
)
def test_what_cannot_be_decided_is_refused_and_nothing_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], frame: pd.DataFrame, words: list[str], message: str
) -> None:
    assert message in refused(capsys, save(frame), *words)


def test_an_existing_file_is_never_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    OUTPUT.write_text("mine")
    assert "exists already, and is not overwritten" in refused(capsys, save(families()))
    OUTPUT.unlink()
    OUTPUT.symlink_to("elsewhere")
    assert "exists already, and is not overwritten" in refused(capsys, "table.csv")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("no.csv", "no such file"),
        ("cells.h5ad", "read by an adapter"),
        ("t.xlsx", "unknown kind of file"),
        ("-", "cannot name this file"),
    ],
)
def test_what_is_no_table_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], table: str, message: str
) -> None:
    assert message in refused(capsys, table)


def test_a_missing_folder_for_the_output_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere: no such folder" in refused(capsys, save(families()), "--output", "nowhere/study.yaml")


# --- Hostile names ---

HOSTILE = 'it\'s: "a"\n# [x] {y} \u2028 - *b &c !d %e @f `g` $(h)\t<i> \x1b[31m é 中'


def test_hostile_names_and_texts_stay_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {name: f"{name} {HOSTILE}" for name in families()}
    frame = families().rename(columns=names)
    frame[names["family"]] += HOSTILE.replace("<i>", "")
    frame[names["class"]] = frame[names["class"]].map({"promoter": "yes: # 'no'", "other": '"{}" - [a], &b: *c'})
    table = "table ' \" # : $(x) é.csv"
    frame.to_json("t.jsonl", orient="records", lines=True)
    Path("t.jsonl").rename(table := table.replace(".csv", ".jsonl"))
    task, text = drafted(table, "--label", names["class"])
    assert task["file"] == table
    assert task["columns"] == {"id": names["name"], "sequence": names["dna"], "label": names["class"]}
    assert task["split"]["column"] == names["family"]
    assert set(task["labels"]) == {"yes: # 'no'", '"{}" - [a], &b: *c'}
    printed = capsys.readouterr().out
    assert "\x1b" not in text + printed
    assert "\u2028" not in text + printed


def test_columns_that_no_prompt_can_name_are_left_out_of_it(folder: Path) -> None:
    frame = pairs().assign(cell=["K562", "HeLa", "RPE1", "A549"] * (len(pairs()) // 4) + ["A549"] * (len(pairs()) % 4))
    task, text = drafted(save(frame.rename(columns={"cell": "cell.line"})))
    assert "cell.line" not in task["prompt"]
    assert 'Column "cell.line" cannot be named in a prompt' in asked(text)


@pytest.mark.parametrize("name", ["{a}.csv", "a<b>.csv", "a\nb.csv"])
def test_a_file_that_no_study_can_name_is_refused(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert "a study cannot name this file" in refused(capsys, save(families(), name))


@given(
    st.lists(st.text(min_size=1), min_size=4, max_size=4, unique=True),
    st.just(["low", "high"]) | st.lists(st.text(), min_size=2, max_size=2),
)
@settings(max_examples=20, deadline=None)
def test_any_names_and_labels_make_a_valid_study_or_one_message(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], labels: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    frame = families(60).assign(**{"class": labels * 30})
    pq.write_table(pa.table([list(frame[name]) for name in frame], names=names), folder / "table.parquet")
    output = folder / "study.yaml"
    code = init(str(folder / "table.parquet"), f"--label={names[3]}", "--output", str(output))
    assert (code, output.exists()) in ((0, True), (2, False))
    if code == 0:
        assert study.read(output).config["tasks"]["table"]["columns"]["label"] == names[3]


@given(
    st.recursive(
        st.text() | st.integers() | st.booleans(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
@example("no")
@example("1e3")
@example("a\x85b\u2028c")
@example({"a: b": ["#", "- x", "null", ""]})
def test_any_value_is_one_line_of_yaml_that_reads_as_itself(value: Any) -> None:
    text = yaml_text.value(value)
    assert len(text.splitlines()) == 1
    assert yaml.safe_load(f"key: {text} # comment") == {"key": value}


@given(st.text())
@example("a\nb: c")
@example("a\u2028b\x85c\x0bd")
def test_no_text_ends_a_comment(text: str) -> None:
    document = f"{yaml_text.comment(text, '1. ', 4)}\n{yaml_text.table([[text, 1]], 2)}\nkey: 1\n"
    assert yaml.safe_load(document) == {"key": 1}
