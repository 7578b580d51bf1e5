"""The lenient reading finds what a fair person finds, is right wherever the strict one is, and never guesses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cisterna.scoring import gene_ontology, lenient
from cisterna.scoring.answers import Labels, Terms, completion
from terms import LIVE, OBO

LABELS = Labels(("donor", "decoy", "donor-like", "T cell (CD4+)", "A.B.", "answer"))
DISEASES = Labels(("melanoma", "uveal melanoma", "parkinson's disease", "type 1", "type 10"))


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Terms:
    path = tmp_path_factory.mktemp("ontology") / "go.obo"
    path.write_text(OBO)
    return Terms(gene_ontology.read(path))


FOUND = {
    "Answer: Melanoma": "melanoma",
    "Answer: melanoma.": "melanoma",
    "**Answer: melanoma**": "melanoma",
    "**Answer:** melanoma": "melanoma",
    "Answer: **Melanoma**.": "melanoma",
    "### Answer\nmelanoma": "melanoma",
    'Answer: "melanoma"': "melanoma",
    "Answer: 'Melanoma.'": "melanoma",
    "Answer: “uveal  melanoma”": "uveal melanoma",
    "Answer: (melanoma)": "melanoma",
    "Final Answer: melanoma": "melanoma",
    "answer:  melanoma": "melanoma",
    "Answer:melanoma": "melanoma",
    "Answer\uff1a melanoma": "melanoma",
    "Answer:\n\nmelanoma\n": "melanoma",
    "The answer is melanoma.": "melanoma",
    "It is in the eye. The final answer is: uveal melanoma": "uveal melanoma",
    "Melanoma": "melanoma",
    "melanoma\nThe gene is BRAF.": "melanoma",
    "Answer: melanoma. The gene is BRAF.": "melanoma",
    "Answer: melanoma\nFinal answer: Melanoma": "melanoma",
    "Answer: Parkinson's disease": "parkinson's disease",
    "Answer: type 10": "type 10",
}
NOT_FOUND = [
    "",
    "Answer:",
    "Answer: cancer",
    "Answer: not melanoma",
    "Answer: melanoma or type 1",
    "Answer: melanoma, type 1",
    "Answer: melanoma\nAnswer: type 1",
    "Answer: melanoma. Or type 1.",
    "Answer: melanoma / uveal melanoma / parkinson's disease / type 1 / type 10",
    "melanoma\nuveal melanoma\nparkinson's disease\ntype 1\ntype 10",
    "Is it melanoma?",
    "It is melanoma, not type 1",
    "I would say melanoma",
    "The answer is not melanoma",
    "The answer is unclear. Answer: melanoma",
    "Answer: type 100",
    "Answer: type",
]


@pytest.mark.parametrize("reasoning", ["", "<think>Is it type 1? Answer: type 1</think>", "<think></think>\n\n"])
@pytest.mark.parametrize("text", FOUND)
def test_an_answer_in_another_form_is_found(text: str, reasoning: str) -> None:
    assert lenient.read(reasoning + text, DISEASES) == FOUND[text]


@pytest.mark.parametrize("reasoning", ["", "<think>melanoma</think>"])
@pytest.mark.parametrize("text", NOT_FOUND)
def test_several_answers_negations_and_other_texts_are_no_answer(text: str, reasoning: str) -> None:
    assert lenient.read(reasoning + text, DISEASES) is None


@pytest.mark.parametrize(
    ("text", "label"),
    {
        "Answer: answer": "answer",
        "Answer: T cell (CD4+).": "T cell (CD4+)",
        "Answer: a.b.": "A.B.",
        "Answer: Donor-like": "donor-like",
        "Answer: donor": "donor",
    }.items(),
)
def test_labels_with_marks_of_their_own_are_found(text: str, label: str) -> None:
    assert lenient.read(text, LABELS) == label


def test_labels_that_differ_in_case_alone_need_their_case() -> None:
    space = Labels(("B", "b", "b."))
    assert [lenient.read(f"The answer is {text}", space) for text in ("B", "b", "b.", '"B"', "'b'")] == [
        *("B", "b", "b.", "B"),
        None,
    ]


def test_reasoning_without_an_end_is_no_answer() -> None:
    assert lenient.read("<think>Answer: melanoma", DISEASES) is None


def test_the_last_line_of_an_output_that_was_cut_is_not_read() -> None:
    assert lenient.read("Answer: type 1", DISEASES, finished=False) is None  # of "type 10"
    assert lenient.read("Answer: type 1\nThis is bec", DISEASES, finished=False) == "type 1"


@given(st.sampled_from([*LABELS.labels]), st.text(max_size=20))
def test_what_the_strict_reading_finds_is_found(label: str, reasoning: str) -> None:
    output = completion(reasoning.replace("</think>", ""), label)
    assert lenient.read(output, LABELS) == LABELS.parse(output) == label


@given(st.text(st.sampled_from("donr-ecylik Aswr:.\n*'\"<>/th"), max_size=60))
def test_no_output_is_read_as_another_answer_than_the_strict_one(output: str) -> None:
    strict = LABELS.parse(output)
    assert strict is None or lenient.read(output, LABELS) == strict


A, B = LIVE[:2]


@pytest.mark.parametrize(
    "text",
    [
        f"Answer: {A}, {B}",
        f"{A},{B}",
        f"Answer: {A}; {B}.",
        f"Answer:\n{A}\n{B}",
        f"Final answer:\n- {A}\n- {B}",
        f"Answer:\n1. {B}\n2. {A}",
        f"Answer: {A} (catalysis), {B} (binding, or not)",
        f"Answer: {A} catalysis; {B} binding",
        f"Answer: {A}, {B}, {A}",
        f"**Answer:** `{A}` `{B}`",
        f"Answer: ['{A}', '{B}']",
        f"The answers are: {A}, {B}",
        f"Answer: {A.lower()} and {B}",
    ],
)
def test_terms_in_any_list_are_found(text: str, space: Terms) -> None:
    assert lenient.read(text, space) == f"{A}, {B}"


@pytest.mark.parametrize(
    "text",
    [
        "Answer: none",
        f"Answer: {A}, not {B}",
        f"Answer: {A} or {B}",
        f"Answer: no {A}",
        f"Answer: {A}\nAnswer: {B}",
        f"It has {A}",
        f"Answer: {A}5",
    ],
)
def test_terms_with_a_negation_or_a_choice_are_no_answer(text: str, space: Terms) -> None:
    assert lenient.read(text, space) is None
