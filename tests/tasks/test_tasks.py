"""The built-in tasks, on the tables that ship."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cisterna import tasks
from cisterna.artifacts import files
from cisterna.errors import UserError
from cisterna.sequences.tokenization import ALPHABETS
from cisterna.tasks import tables
from cisterna.tasks.builtin import cell_type, promoter_expression, protein_fitness, splice_donor
from cisterna.tasks.catalog import LABELS, MODALITIES, SOURCES

ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    "splice-donor": splice_donor,
    "protein-fitness": protein_fitness,
    "promoter-expression": promoter_expression,
    "cell-type": cell_type,
}
# What the assay measured: the only columns an answer may come from, and never a prompt or a trace.
ASSAY = {
    "splice-donor": ["psi_1", "psi_2"],
    "protein-fitness": ["enrichment"],
    "promoter-expression": ["gate"],
    "cell-type": ["annotation"],
}
TAGGED = re.compile(r"<(dna|rna|protein)>([A-Z]+)</\1>")


@pytest.fixture(autouse=True)
def _root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(params=list(LABELS))
def name(request):
    return request.param


@pytest.fixture
def raw(name):
    return pd.read_parquet(ROOT / SOURCES[name])


@pytest.fixture
def examples(name):
    return tasks.read(tasks.load(name, {}))


def flat(text):
    return " ".join(text.split())


def test_docstring_shows_a_real_row_with_its_true_prompt_trace_and_answer(name, raw, examples):
    document = flat(MODULES[name].__doc__)
    identifier = re.search(r"\bid (\S+)", document)[1]
    row = raw[raw["id"] == identifier].iloc[0]
    example = examples[examples["id"] == identifier].iloc[0]
    fields = row.to_dict() | {"prompt": example["prompt"], "trace": example["reasoning"], "answer": example["answer"]}
    assert flat(" ".join(f"{key} {value}" for key, value in fields.items())) in document
    assert not example["ood"]


def test_prompt_and_trace_do_not_depend_on_the_assay(name, raw, examples):
    shuffled = raw.copy()
    shuffled[ASSAY[name]] = raw[ASSAY[name]].sample(frac=1, random_state=0).to_numpy()
    again = tasks.load(name, {}).examples(shuffled)
    for column in ("id", "prompt", "reasoning", "sequence", "group", "ood"):
        assert list(again[column]) == list(examples[column])
    assert (again["answer"] != examples["answer"]).mean() > 0.2


def test_no_trace_names_an_answer_alone(name, examples):
    """No trace holds only the right label: it names none of the labels, or (cell-type) all."""
    for labels in examples["reasoning"].map(lambda t: {label for label in LABELS[name] if label in t}):
        assert labels in (set(), set(LABELS[name]))


def test_examples_are_whole_and_unique(name, examples):
    assert tuple(examples.columns) == tasks.COLUMNS
    assert not examples.isna().any().any()
    assert examples["answer"].isin(LABELS[name]).all()
    for column in ("id", "sequence", "prompt"):
        assert examples[column].is_unique
    assert examples["prompt"].str.endswith("\n").all()
    assert examples["ood"].dtype == bool


def test_tagged_sequences_hold_letters_of_the_modality_only(name, examples):
    for text in examples["prompt"] + examples["reasoning"]:
        for modality, sequence in TAGGED.findall(text):
            assert modality == MODALITIES[name]
            assert set(sequence) <= set(ALPHABETS[modality])
        assert not tables.MARKUP.search(TAGGED.sub("", text))


def test_segments_say_of_which_sequence_each_stretch_is(name, examples):
    for row in examples.head(200).itertuples():
        stretches = [match[1] for match in TAGGED.findall(row.prompt)]
        assert len(stretches) == len(row.segments)
        for stretch, segment in zip(stretches, row.segments, strict=True):
            start = segment["start"]
            assert segment["sequence"][start : start + len(stretch)] == stretch
            assert segment["center"] is None
    wholes = {segment["sequence"] for segments in examples["segments"] for segment in segments}
    expected = set(examples["sequence"]) if name != "cell-type" else set()
    assert wholes == expected | ({protein_fitness.WILD_TYPE} if name == "protein-fitness" else set())


def test_questions_about_the_tables_own_sequences_are_its_prompts(name, examples, tmp_path):
    given = examples[["id", "sequence"]].head(30)
    given.to_csv(tmp_path / "new.csv", index=False)
    found = tasks.questions(tasks.load(name, {}), tmp_path / "new.csv")
    for column in ("id", "sequence", "prompt", "segments"):
        assert list(found[column]) == list(examples[column].head(30))


def test_every_label_occurs_in_domain_and_out_of_domain(name, examples):
    for _, side in examples.groupby("ood"):
        assert set(side["answer"]) == set(LABELS[name])


def test_in_domain_rows_are_balanced_where_the_datasheet_says_so(name, examples):
    counts = examples[~examples["ood"]]["answer"].value_counts()
    if name != "cell-type":
        assert counts.min() == counts.max()


def test_held_out_groups_are_not_in_domain(name, examples):
    assert not set(examples[examples["ood"]]["group"]) & set(examples[~examples["ood"]]["group"])


def test_datasheet_states_the_rows_there_are(name, examples):
    sheets = " ".join(path.read_text() for path in (ROOT / "resources").glob("DATASHEET*.md"))
    outside = int(examples["ood"].sum())
    assert f"| `{name}` | {len(examples) - outside:,} | {outside:,} |" in sheets


def test_shipped_tables_stay_small(name):
    assert (ROOT / SOURCES[name]).stat().st_size < 400_000


def test_splice_donors_out_of_domain_are_gc_and_no_other():
    frame = tasks.read(tasks.load("splice-donor", {}))
    donor = frame["sequence"].str[3:5]
    assert set(donor[frame["ood"]]) == {"GC"}
    assert set(donor[~frame["ood"]]) == {"GU"}


def test_no_helix_residue_is_mutated_in_domain_and_only_helix_residues_out_of_domain():
    frame = tasks.read(tasks.load("protein-fitness", {}))
    for row in frame.itertuples():
        sites = [site for site, _, _ in protein_fitness.mutations(row.sequence)]
        assert len(sites) == 2
        assert all((23 <= site <= 36) == row.ood for site in sites)


def test_promoters_out_of_domain_carry_a_heavier_load():
    frame = tasks.read(tasks.load("promoter-expression", {}))
    load = frame["sequence"].map(lambda s: len(promoter_expression.mutations(s)))
    assert load[frame["ood"]].min() > load[~frame["ood"]].max()


def test_cells_in_domain_are_in_g1():
    frame = tasks.read(tasks.load("cell-type", {}))
    assert set(frame["group"][~frame["ood"]]) == {"G1"}
    assert set(frame["group"][frame["ood"]]) == {"S", "G2M"}


def test_labels_follow_the_stated_thresholds():
    assert splice_donor.label(10.0, 10.0) == "spliced"
    assert splice_donor.label(4.99, 0.1) == "skipped"
    assert splice_donor.label(9.99, 80.0) is None
    assert splice_donor.label(5.0, 1.0) is None
    assert protein_fitness.label(-1.0) == "functional"
    assert protein_fitness.label(-3.0) == "impaired"
    assert protein_fitness.label(-1.01) is protein_fitness.label(-2.99) is None
    gates = [promoter_expression.label(gate) for gate in range(10)]
    assert gates == [None, "low", "low", *[None] * 5, "high", "high"]


@given(st.text(alphabet="ACGU", min_size=9, max_size=9))
def test_splice_trace_counts_the_matches_it_lists(sequence):
    trace = splice_donor.reasoning(sequence)
    exon = sum(a in b for a, b in zip(sequence[:3], ("C", "A", "G"), strict=True))
    intron = sum(a in b for a, b in zip(sequence[3:], ("G", "U", "AG", "A", "G", "U"), strict=True))
    assert trace.endswith(f"exon {exon} of 3 intron {intron} of 6")
    assert trace.count(" match") == exon + intron
    assert trace.count(" miss") == 9 - exon - intron


def test_splice_consensus_itself_matches_everywhere():
    assert "miss" not in splice_donor.reasoning("CAGGUAAGU")
    assert splice_donor.reasoning("CAGGUGAGU") == splice_donor.reasoning("CAGGUAAGU")


@given(st.data())
def test_protein_prompt_holds_all_that_is_needed_to_rebuild_the_variant(data):
    sites = data.draw(st.lists(st.integers(2, 56), min_size=2, max_size=2, unique=True))
    variant = list(protein_fitness.WILD_TYPE)
    for site in sites:
        others = sorted(set(protein_fitness.VOLUMES) - {variant[site - 2]})
        variant[site - 2] = data.draw(st.sampled_from(others))
    prompt = protein_fitness.prompt("".join(variant))
    pattern = r"<protein>(\w)</protein>(\d+)<protein>(\w)</protein>"
    rebuilt = list(protein_fitness.WILD_TYPE)
    for old, site, new in re.findall(pattern, prompt):
        assert rebuilt[int(site) - 2] == old
        rebuilt[int(site) - 2] = new
    assert rebuilt == variant


def test_protein_facts_agree_with_the_known_domain():
    wild_type = protein_fitness.WILD_TYPE
    number = {site: wild_type[site - 2] for site in range(2, 57)}
    # Buried side chains and the residues that touch Fc, by their names in the papers.
    assert [number[s] for s in (3, 5, 26, 30, 43, 52, 54)] == list("YLAFWFV")
    assert [number[s] for s in (27, 28, 31, 32, 35, 40, 42)] == list("EKKQNDE")
    assert protein_fitness.place(43) == "core contact"
    assert protein_fitness.place(10) == "surface"
    assert set(protein_fitness.RESIDUE_CLASSES) == set(protein_fitness.VOLUMES) == set(ALPHABETS["protein"]) - {"X"}


@given(st.text(alphabet="ACGT", min_size=75, max_size=75))
def test_promoter_prompt_and_trace_agree_with_the_sequence(sequence):
    prompt = promoter_expression.prompt(sequence)
    rebuilt = list(promoter_expression.WILD_TYPE)
    for site, new in re.findall(r"(\d+)<dna>(\w)</dna>", prompt):
        rebuilt[75 - int(site)] = new
    assert "".join(rebuilt) == sequence
    kept = [int(n) for n in re.findall(r"keeps (\d)", promoter_expression.reasoning(sequence))]
    motifs = (sequence[6:11], sequence[17:22], sequence[39:45], sequence[63:69])
    consensus = ("TGTGA", "TCACA", "TTGACA", "TATAAT")
    assert kept == [sum(a == b for a, b in zip(*pair, strict=True)) for pair in zip(motifs, consensus, strict=True)]


def test_promoter_wild_type_has_the_sites_where_the_literature_puts_them():
    wild_type = promoter_expression.WILD_TYPE
    assert wild_type[75 - 36 : 75 - 30] == "TTTACA"  # -36 to -31
    assert wild_type[75 - 12 : 75 - 6] == "TATGTT"  # -12 to -7
    assert wild_type[75 - 69 : 75 - 53] == "TGTGAGTTAGCTCACT"  # CRP, centred on -61.5
    assert promoter_expression.reasoning(wild_type) == ("left keeps 5, right keeps 4, box35 keeps 5, box10 keeps 4")


def test_cell_markers_of_two_kinds_do_not_overlap():
    genes = [gene for markers in cell_type.MARKERS.values() for gene in markers]
    assert len(genes) == len(set(genes))
    assert tuple(cell_type.MARKERS) == LABELS["cell-type"]
    assert set(cell_type.CELL_TYPES.values()) == set(LABELS["cell-type"])


def test_cell_trace_lists_exactly_the_markers_in_the_sentence():
    frame = tasks.read(tasks.load("cell-type", {}))
    markers = frozenset().union(*cell_type.MARKERS.values())
    for row in frame.itertuples():
        sentence = row.sequence.split()
        assert len(sentence) == cell_type.GENES
        listed = re.findall(r"[A-Z][A-Z0-9-]+", row.reasoning)
        assert sorted(listed) == sorted(gene for gene in sentence if gene in markers)


def test_tokenizer_text_is_made_of_train_rows_without_sequences():
    spec = importlib.util.spec_from_file_location("build_tasks", ROOT / "scripts/build_tasks.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    shipped = (ROOT / "resources/tokenizer/task_text.txt").read_text()
    tables = {name: pd.read_parquet(ROOT / SOURCES[name]) for name in script.BUILDERS}
    assert shipped == script.text(tables)
    assert not re.search(r"<(dna|rna|protein|think)>", shipped)
    assert len(shipped.encode()) <= 300_000
    lines = set(shipped.splitlines())
    cells = tasks.read(tasks.load("cell-type", {}))
    quoted = cells["prompt"].str.strip().isin(lines)
    assert quoted.sum() > 50
    assert cells["id"][quoted].map(tasks.quotable).all()
    assert not cells["ood"][quoted].any()


def test_importing_tasks_does_not_import_pandas():
    code = "import sys, cisterna.tasks, cisterna.tasks.catalog; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_task_is_refused_with_the_names_there_are():
    with pytest.raises(UserError, match=r"'splice-doner'.*splice-donor"):
        tasks.load("splice-doner", {"train": 10})


def test_missing_or_broken_shipped_table_is_a_user_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "CLONE", tmp_path)
    source = SOURCES["cell-type"]
    with pytest.raises(UserError, match=rf"{source}: no such file.*git checkout"):
        tasks.read(tasks.load("cell-type", {}))
    (tmp_path / source).parent.mkdir(parents=True)
    (tmp_path / source).write_bytes((ROOT / source).read_bytes()[:500])
    with pytest.raises(UserError, match=r"not a readable Parquet file.*git checkout"):
        tasks.read(tasks.load("cell-type", {}))
