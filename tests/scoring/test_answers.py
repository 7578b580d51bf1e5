"""Outputs that try to score without answering."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cisterna.artifacts import files
from cisterna.errors import UserError
from cisterna.scoring import answers, gene_ontology
from cisterna.scoring.answers import completion, join, parse, parse_terms, split
from terms import OBO

LABELS = ("donor", "decoy", "donor-like")


@pytest.mark.parametrize("label", LABELS)
def test_one_answer_after_the_reasoning_is_read(label: str) -> None:
    assert parse(f"<think>GT at +1.</think>Answer: {label}", LABELS) == label
    assert parse(f"<think>GT at +1.</think>\n\n Answer: {label} \n", LABELS) == label


WHOLE = ["", "donor", "Answer: donor", "<think>Answer: donor", "<think>Answer: donor</think>"]
WHOLE += ["<think>x</THINK>Answer: donor", "<think>x</ think>Answer: donor"]
TAILS = [
    *(
        "donor",
        "The answer is donor",
        "So: Answer: donor",
        "Answer: ",
        "Answer: Answer: donor",
        "Answer: donor</think>",
    ),
    *("Answer: donor decoy donor-like", "Answer: donor, decoy", "Answer: donor</think>Answer: donor or decoy"),
    *("Answer: donor Answer: donor", "Answer: donor\nAnswer: donor", "Answer: donor\nAnswer: decoy"),
    *("Answer: donor.", "Answer: donor because of GT", "Answer: donor<think>y", "Answer: donor<|im_end|>"),
    *("Answer: don", "Answer: donor-", "Answer: donor-likely", "Answer: Donor", "Answer: DONOR", "Answer: 'donor'"),
    *("answer: donor", "ANSWER: donor", "Answer:donor", "Answer:  donor", "Answer : donor"),
    *("Answer: d\u043enor", "\u0410nswer: donor"),  # Cyrillic o, Cyrillic A
    *("Answer\uff1a donor", "Answer: \uff44onor"),  # full-width colon, full-width d
    *("Answer: donor\u200b", "Answer: do\u00adnor"),  # zero-width space, soft hyphen
    *("Answer: acceptor",),  # not in the answer space
]


@pytest.mark.parametrize("output", WHOLE + [f"<think>x</think>{tail}" for tail in TAILS])
def test_malformed_outputs_answer_nothing(output: str) -> None:
    assert parse(output, LABELS) is None


def test_only_the_text_after_the_last_closing_tag_counts() -> None:
    output = "<think>a</think>Answer: donor<think>b</think>Answer: decoy"
    assert parse(output, LABELS) == "decoy"


def test_an_answer_in_the_reasoning_does_not_spoil_the_answer() -> None:
    assert parse("<think>Answer: decoy? No.</think>Answer: donor", LABELS) == "donor"


def test_a_label_of_several_words_is_one_answer() -> None:
    assert parse("<think>x</think>Answer: B cell", ("B cell", "T cell")) == "B cell"


@given(st.text().filter(lambda text: "</think>" not in text), st.sampled_from(LABELS))
def test_every_taught_completion_is_read_back(reasoning: str, label: str) -> None:
    assert parse(completion(reasoning, label), LABELS) == label


PIECES = st.sampled_from([*LABELS, "Answer: ", " ", "\n", "</think>", "<think>", ",", "or", "."])


@given(st.lists(PIECES, max_size=12).map("".join))
def test_an_output_that_scores_names_one_label_and_nothing_else(output: str) -> None:
    label = parse(output, LABELS)
    if label is not None:
        assert "</think>" in output
        assert output.split("</think>")[-1].strip() == f"Answer: {label}"


@given(st.text(max_size=20), st.lists(st.sampled_from(LABELS), min_size=2, max_size=4), st.text(max_size=5))
def test_more_than_one_label_after_the_reasoning_never_scores(reasoning: str, named: list[str], joint: str) -> None:
    if "</think>" not in joint + reasoning:
        tail = joint.join(f"Answer: {label}" for label in named)
        assert parse(f"<think>{reasoning}</think>{tail}", LABELS) is None
        assert parse(completion(reasoning, joint.join(named)), LABELS) is None or (joint.join(named) in LABELS)


# --- Sets of terms ---

ID = st.integers(0, 9_999_999).map(lambda number: f"GO:{number:07}")


@given(st.sets(ID, min_size=1, max_size=30), st.randoms())
def test_a_set_of_terms_is_read_in_any_order(terms: set[str], rng: random.Random) -> None:
    shuffled = sorted(terms)
    rng.shuffle(shuffled)
    assert parse_terms(completion("x", ", ".join(shuffled))) == join(terms)
    assert set(split(join(terms))) == terms
    assert parse_terms(completion("x", join(terms))) == join(terms)


LISTS = [
    *("", "none", "GO:0005515, ", ", GO:0005515", "GO:0005515.", "['GO:0005515']", "GO:0005515 (protein binding)"),
    *("GO:0005515,GO:0003677", "GO:0005515 GO:0003677", "GO:0005515; GO:0003677", "GO:0005515,  GO:0003677"),
    *("GO:0005515 and GO:0003677", "GO:0005515\nGO:0003677", "GO:0005515\nAnswer: GO:0003677"),
    *("GO:0005515, Answer: GO:0003677", "GO:0005515, donor"),
    *("GO:0005515, GO:0005515", "GO:0005515, GO:0003677, GO:0005515"),
    *("GO:5515", "GO:00055155", "GO:000551", "go:0005515", "GO0005515", "0005515", "GO:000551a"),
    "GO:\u0661\u0661\u0661\u0661\u0661\u0661\u0661",  # Arabic digits
]


@pytest.mark.parametrize("answer", LISTS)
def test_what_is_not_a_list_of_different_ids_is_malformed(answer: str) -> None:
    assert parse_terms(f"<think>x</think>Answer: {answer}") is None


@pytest.mark.parametrize("output", ["GO:0005515", "Answer: GO:0005515", "<think>x</think>GO:0005515"])
def test_terms_without_an_answer_after_the_thought_are_malformed(output: str) -> None:
    assert parse_terms(output) is None


def test_a_card_of_labels_makes_labels_and_one_of_terms_its_ontology(tmp_path) -> None:
    labels = answers.load_space({"labels": ["donor", "decoy"]}, tmp_path)
    assert (labels.kind, labels.labels) == ("labels", ("donor", "decoy"))
    assert labels.parse("<think>x</think>Answer: decoy") == "decoy"
    (tmp_path / "go.obo").write_text(OBO)
    go = gene_ontology.read(tmp_path / "go.obo")
    go.write(tmp_path / gene_ontology.FILE)
    card = {"labels": [], "answers": {"kind": "terms", "sha256": files.sha256(tmp_path / gene_ontology.FILE)}}
    terms = answers.load_space(card, tmp_path)
    assert (terms.kind, terms.labels, terms.ontology) == ("terms", (), go)
    assert terms.parse("<think>x</think>Answer: GO:0000015, GO:0000002") == "GO:0000002, GO:0000015"
    with pytest.raises(UserError, match=r"terms\.json"):
        answers.load_space(card | {"answers": {"kind": "terms", "sha256": "0" * 64}}, tmp_path)
