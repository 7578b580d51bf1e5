"""The lenient reading finds what a fair person finds, is right wherever the strict one is, and never guesses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cisterna.scoring import gene_ontology, lenient, rewards
from cisterna.scoring.answers import Labels, Terms, completion
from terms import LIVE, OBO

THOUGHT = "<think>The gene may be BRAF. Is it type 1? Answer: type 1</think>"
DISEASES = Labels(("melanoma", "uveal melanoma", "parkinson's disease", "type 1", "type 10"))
# Within one another, with marks at the ends, with a full stop inside, and the words of the form itself.
MARKS = Labels(
    ("donor", "donor-like", "T cell (CD4+)", "A.B.", "S", "S. aureus", "Trp24", "Trp24*", "5'", "answer", "no")
)
VARIANTS = Labels(("benign", "pathogenic", "likely pathogenic", "not known"))


@pytest.fixture(scope="module")
def terms(tmp_path_factory: pytest.TempPathFactory) -> Terms:
    path = tmp_path_factory.mktemp("ontology") / "go.obo"
    path.write_text(OBO)
    return Terms(gene_ontology.read(path))


# --- Labels: what models write, and what each reading makes of it ---

STRICT = {
    "Answer: melanoma": "melanoma",
    "\n\nAnswer: uveal melanoma \n": "uveal melanoma",
    "Answer: type 10": "type 10",
}
LENIENT = {
    "Answer: Melanoma": "melanoma",
    "ANSWER: MELANOMA": "melanoma",
    "answer: melanoma": "melanoma",
    "Answer:  melanoma": "melanoma",
    "Answer:melanoma": "melanoma",
    "Answer : melanoma": "melanoma",
    "Answer = melanoma": "melanoma",
    "Answer\uff1a melanoma": "melanoma",
    "Answer:\u00a0melanoma": "melanoma",
    "Answer: melanoma.": "melanoma",
    "Answer: melanoma!": "melanoma",
    "**Answer: melanoma**": "melanoma",
    "**Answer:** melanoma": "melanoma",
    "**Answer**: *melanoma*": "melanoma",
    "Answer: **Melanoma**.": "melanoma",
    "Answer: `melanoma`": "melanoma",
    "```\nAnswer: melanoma\n```": "melanoma",
    "> Answer: melanoma": "melanoma",
    'Answer: "melanoma"': "melanoma",
    "Answer: 'Melanoma.'": "melanoma",
    "Answer: \u201cuveal  melanoma\u201d": "uveal melanoma",
    "Answer: (melanoma)": "melanoma",
    "Answer: [melanoma]": "melanoma",
    "Final Answer: melanoma": "melanoma",
    "The final answer is: **uveal melanoma**.": "uveal melanoma",
    "My answer is melanoma.": "melanoma",
    "The most likely answer is melanoma": "melanoma",
    "Answer:\n\nmelanoma\n": "melanoma",
    "Answer: \r\n melanoma": "melanoma",
    "### Answer\nmelanoma": "melanoma",
    "## Final Answer\n\n**melanoma**\n": "melanoma",
    r"The answer is $\boxed{\text{melanoma}}$.": "melanoma",
    "<answer>\nmelanoma\n</answer>": "melanoma",
    "Melanoma": "melanoma",
    "- melanoma": "melanoma",
    "melanoma\nThe gene is BRAF.": "melanoma",
    "The gene is BRAF.\n\n**Melanoma**": "melanoma",
    "No splice site is lost.\nMelanoma": "melanoma",
    "The gene is BRAF, not KRAS.\nMelanoma": "melanoma",
    "I conclude:\nmelanoma": "melanoma",
    "It is in the eye. The final answer is: uveal melanoma": "uveal melanoma",
    "It may be type 1 or type 10.\nAnswer: melanoma": "melanoma",
    "Answer: melanoma. The gene is BRAF.": "melanoma",
    "Answer: melanoma\n\nMelanoma is caused by BRAF.": "melanoma",
    "Answer: melanoma\nFinal answer: Melanoma": "melanoma",
    "Answer: Answer: melanoma": "melanoma",
    "Answer: parkinson\u2019s disease": None,  # another apostrophe: another spelling
    "Answer: Parkinson's disease": "parkinson's disease",
    "Answer: Type 10.": "type 10",
}
NEITHER = [
    "",
    "Answer:",
    "**Answer:**",
    # no label, or not quite one
    "Answer: cancer",
    "Answer: type 100",
    "Answer: type",
    "Answer: melanomas",
    "Answer: mela noma",
    "Answer: melanoma<|user|>",
    "The answer is unclear.",
    # negations and doubt
    "Answer: not melanoma",
    "Answer: Not Melanoma.",
    "The answer is not melanoma.",
    "The answer isn't melanoma.",
    "I don't think the answer is melanoma.",
    "The wrong answer is melanoma.",
    "If not, the answer is melanoma",
    "Not the answer: melanoma",
    "Answer: melanoma?",
    "Is it melanoma?",
    "Is the answer: melanoma?",
    "Answer: melanoma. It is not melanoma.",
    "It is not melanoma.\nmelanoma",
    "Answer: neither",
    "Answer: not\nmelanoma",
    "The answer is not clear.\nmelanoma",
    "The answer is: unclear\n\nmelanoma",
    "It is certainly not:\nmelanoma",
    "This is not\nmelanoma",
    "The correct answer would not be:\n\nmelanoma",
    "Which one, I cannot say:\nmelanoma",
    # a label that is named for another reason
    "One wrong option is:\nmelanoma",
    "What can be ruled out:\n- melanoma",
    "Question: which disease?\nOptions:\n- melanoma",
    "Answer: maybe melanoma",
    # two answers
    "Answer: melanoma or type 1",
    "Answer: melanoma, type 1",
    "Answer: melanoma/type 1",
    "Answer: melanoma and type 1",
    "Answer: melanoma type 1",
    "Answer: melanoma (type 1)",
    "Answer: melanoma. Or type 1.",
    "Answer: uveal melanoma. Or melanoma.",
    "Answer: melanoma\nAnswer: type 1",
    "Answer: melanoma\nAnswer: cancer",
    "Answer: cancer\nAnswer: melanoma",
    "The answer is unclear. Answer: melanoma",
    "Answer: melanoma\nAnswer: I do not know",
    "melanoma\nAnswer: type 1",
    "melanoma\n\nQuestion: And this one?\nAnswer: type 1",
    r"\boxed{melanoma} \boxed{type 1}",
    "<answer>melanoma</answer><answer>type 1</answer>",
    # all labels
    "Answer: melanoma, uveal melanoma, parkinson's disease, type 1, type 10",
    "Answer: [melanoma, uveal melanoma, parkinson's disease, type 1, type 10]",
    "melanoma\nuveal melanoma\nparkinson's disease\ntype 1\ntype 10",
    "- melanoma\n- uveal melanoma\n- parkinson's disease\n- type 1\n- type 10",
    # in a sentence: never searched for
    "It is melanoma, not type 1",
    "I would say melanoma",
    "Answer: I would say melanoma",
    # no end of a thought
    "<think>Answer: melanoma",
    "Answer: melanoma\n<think>Wait.",
]


@pytest.mark.parametrize("text", STRICT)
def test_both_readings_find_an_answer_in_the_exact_form(text: str) -> None:
    assert DISEASES.parse(THOUGHT + text) == lenient.read(THOUGHT + text, DISEASES) == STRICT[text]
    assert DISEASES.parse(text) is None
    assert lenient.read(text, DISEASES) == STRICT[text]


@pytest.mark.parametrize("text", LENIENT)
def test_an_answer_in_another_form_is_found_by_the_lenient_reading_alone(text: str) -> None:
    for thought in ("", THOUGHT, f"{THOUGHT}\n\n", "The gene may be BRAF.</think>"):
        assert DISEASES.parse(thought + text) is None
        assert lenient.read(thought + text, DISEASES) == LENIENT[text]


@pytest.mark.parametrize("text", NEITHER)
def test_no_answer_and_several_are_none(text: str) -> None:
    for thought in ("", "<think>It is melanoma.</think>", "<think></think>\n\n"):
        assert DISEASES.parse(thought + text) is None
        assert lenient.read(thought + text, DISEASES) is None


@pytest.mark.parametrize(
    ("text", "label"),
    {
        "Answer: answer.": "answer",
        "**Answer**: Answer": "answer",
        "The answer is answer": "answer",
        "Answer": "answer",
        "### Answer\nanswer": "answer",
        "Answer:": None,
        "answer\ndonor": None,
        "Answer: Donor-like": "donor-like",
        "Answer: donor like": None,
        "Answer: T cell (CD4+).": "T cell (CD4+)",
        "Answer: (T cell (CD4+))": None,
        "Answer: t cell (cd4+)": "T cell (CD4+)",
        "Answer: a.b": "A.B.",
        "Answer: S. Aureus": "S. aureus",
        "Answer: S. Aureus is known": None,  # neither "S" nor "S. aureus"
        "Answer: **S**": "S",
        "Answer:  Trp24*": "Trp24*",
        "Answer: **Trp24**": None,  # either
        "Answer: **5'**": "5'",
        "Answer: No.": "no",
        "Answer: No. The answer is donor.": None,
        "Answer: donor. No.": None,
    }.items(),
)
def test_labels_with_marks_of_their_own_and_within_one_another(text: str, label: str | None) -> None:
    assert lenient.read(text, MARKS) == lenient.read(f"<think>donor</think>{text}", MARKS) == label


@pytest.mark.parametrize(
    ("text", "label"),
    {
        "Answer: Pathogenic.": "pathogenic",
        "Answer: **Likely pathogenic**": "likely pathogenic",
        "Answer: pathogenic\nNot likely pathogenic.": None,
        "Answer: likely": None,
        "Answer: Not known.": "not known",
        "Answer: not benign": None,
    }.items(),
)
def test_labels_that_are_words_of_others_or_of_a_negation(text: str, label: str | None) -> None:
    assert lenient.read(text, VARIANTS) == label


@pytest.mark.parametrize(
    ("labels", "text", "label"),
    [
        (["1", ">1"], "The answer is >1", ">1"),
        (["1", ">1"], "**Final answer:** >1.", ">1"),
        (["0", "1"], "The answer is >1", None),
        (["0", "1"], "The answer is > 1", None),
        (["0", "1"], "The answer is - 1", None),
        (["0", "1"], "Answer: -1", None),
        (["0", "1"], "Answer: **1**", "1"),
        (["-1", "0", "1"], "The answer is -1.", "-1"),
        (["1", "*1"], "The answer is *1", "*1"),
        (["1", "$1"], "The answer is $1", "$1"),
    ],
)
def test_marks_of_an_announcement_take_none_from_a_label(labels: list[str], text: str, label: str | None) -> None:
    assert lenient.read(text, Labels(tuple(labels))) == label


def test_labels_that_differ_in_case_alone_need_their_case() -> None:
    space = Labels(("B", "b", "b."))
    found = {text: lenient.read(f"The answer is {text}", space) for text in ("B", "b", "b.", '"B"', "'b'")}
    assert found == {"B": "B", "b": "b", "b.": "b.", '"B"': "B", "'b'": None}


@pytest.mark.parametrize(
    ("text", "label"),
    {
        "Answer: type 1": None,  # of "type 10", may be
        "Answer: type 1.": None,
        "Answer: type 1\nThis is bec": "type 1",
        "Answer: type 1. This is bec": "type 1",
        "Answer: type 1\nAnswer: type 10": None,
        "Answer: type 1. It is not type 1 bec": None,
        "<think>Answer: type 1\nThis is bec": None,
        "<think>It is long.</think>\nAnswer: type 1\n\nThis is bec": "type 1",
    }.items(),
)
def test_the_end_of_an_output_that_was_cut_is_left_out(text: str, label: str | None) -> None:
    assert lenient.read(text, DISEASES, finished=False) == label


def test_the_strict_form_of_an_output_that_was_cut_is_no_answer() -> None:
    assert lenient.read(completion("", "type 1"), DISEASES, finished=False) is None


FORMS = ["Answer: {}.", "**Answer:** {}", "Final Answer:\n\n{}", 'The answer is "{}".', "<answer>{}</answer>", "`{}`"]
ANY_LABELS = st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1), min_size=2, unique=True)
FRAGMENTS = [
    *"donr-ecyS.5'+* \n:#>{}[]()",
    "answer",
    "Answer: ",
    "<think>",
    "</think>",
    "donor",
    "is ",
    "not ",
    "GO:0000002",
    ", ",
]


@given(ANY_LABELS, st.data(), st.text(max_size=20))
def test_what_the_strict_reading_finds_is_found(labels: list[str], data: st.DataObject, thought: str) -> None:
    space, label = Labels(tuple(labels)), data.draw(st.sampled_from(labels))
    output = completion(thought.replace("</think>", ""), label)
    assert lenient.read(output, space) == space.parse(output) == label


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join), st.booleans())
def test_any_text_is_read_and_as_the_strict_reading_reads_it_where_this_does(text: str, finished: bool) -> None:
    strict, found = MARKS.parse(text), lenient.read(text, MARKS, finished)
    assert found is None or found in MARKS.labels
    assert strict is None or not finished or found == strict


@given(ANY_LABELS, st.data(), st.sampled_from(FORMS))
def test_a_form_is_never_read_as_another_label(labels: list[str], data: st.DataObject, form: str) -> None:
    label = data.draw(st.sampled_from(labels))
    assert lenient.read(form.format(label), Labels(tuple(labels))) in (label, None)


@given(
    st.permutations(DISEASES.labels),
    st.sampled_from([", ", " or ", "\n", ". ", "; ", " / ", ".\nAnswer: "]),
    st.sampled_from(FORMS),
)
def test_two_labels_are_no_answer(labels: list[str], between: str, form: str) -> None:
    assert lenient.read(form.format(between.join(labels[:2])), DISEASES) is None


@pytest.mark.parametrize(
    "piece", ["answer: ", "*", "'.", "the final ", "<answer>", r"\boxed{", "GO:0000002 ", "(", "\n"]
)
def test_a_long_output_that_repeats_itself_is_read_to_its_end(piece: str, terms: Terms) -> None:
    """Without patterns that take hours for it."""
    text = piece * (20_000 // len(piece))
    assert lenient.read(text, DISEASES) is None
    assert lenient.read(text, terms) == ("GO:0000002" if piece.startswith("GO") else None)


def test_no_reward_reads_leniently() -> None:
    """A model that RL trains is paid for the exact form alone."""
    assert rewards.correct(THOUGHT + "Answer: melanoma", "melanoma", DISEASES) == 1
    for text, label in LENIENT.items():
        for paid in (rewards.correct, rewards.well_formed):
            assert paid(THOUGHT + text, str(label), DISEASES) == 0


# --- Sets of terms ---

A, B = LIVE[:2]
BOTH = [
    f"{A},{B}",
    f"Answer: {A}; {B}.",
    f"Answer: {B} {A}",
    f"Answer:\n{A}\n{B}",
    f"Answer: {A}|{B}",
    f"Final answer:\n- {A}\n- {B}",
    f"Answer:\n* {A}\n* {B}",
    f"Answer:\n1. {B}\n2. {A}",
    f"1) {A}: catalysis\n2) {B}: binding",
    f"- **{A}** - catalysis\n- **{B}** - binding",
    f"Answer: {A} (catalysis), {B} (binding, or not)",
    f"Answer: {A} (acting on carbon-nitrogen (but not peptide) bonds), {B} [binding]",
    f"Answer: {A} catalysis; {B} binding",
    f"Answer: {A}, {B}, {A}",
    f"**Answer:** `{A}` `{B}`",
    f"Answer: ['{A}', '{B}']",
    f"Answer: {A.lower()} and {B}",
    f"Answer: {A}, {B}, and {A}",
    f"Answer: {A.replace(':', '_')}, {B.replace(':', ': ')}",
    f"The answers are: {A}, {B}",
    f"Molecular function: {A}; Biological process: {B}",
    f"**MF:** {A}\n**BP:** {B}",
    f"<answer>{A}, {B}</answer>",
    rf"\boxed{{{A}, {B}}}",
    f"Answer: {A},{B}\nFinal answer: {B},{A}",
    f"Answer: {A}, {B}\n\nThis may not be all.",
]
NO_SET = [
    "Answer: none",
    f"Answer: {A}5",
    f"Answer: {A}, GO:12",
    # negations and doubt
    f"Answer: no {A}",
    f"Answer: not {A}",
    f"Answer: {A}, not {B}",
    f"Answer: {A}, but not {B}",
    f"Answer: {A} (not present), {B}",
    f"Answer: {A}: no\n{B}: yes",
    f"Answer: {A}?",
    f"Answer: {A}, {B}; none",
    f"I don't think the answer is {A}",
    # two answers
    f"Answer: {A} or {B}",
    f"Answer: {A}/{B}",
    f"Answer: {A}\nAnswer: {B}",
    f"Answer: {A}\nAnswer: {A}, {B}",
    f"{A}; {B}\nAnswer: {A}",
    # in a sentence
    f"It has {A}",
    f"Answer: {A}\nThe protein binds {B}",
    f"Answer: {A} because of {B}",
    f"<think>Answer: {A}, {B}",
]


@pytest.mark.parametrize("text", BOTH)
def test_terms_in_any_list_are_found(text: str, terms: Terms) -> None:
    for thought in ("", f"<think>{LIVE[3]}</think>"):
        assert terms.parse(thought + text) is None
        assert lenient.read(thought + text, terms) == f"{A}, {B}"


@pytest.mark.parametrize("text", NO_SET)
def test_no_list_of_terms_and_several_are_none(text: str, terms: Terms) -> None:
    for thought in ("", f"<think>{A}</think>"):
        assert terms.parse(thought + text) is None
        assert lenient.read(thought + text, terms) is None


@pytest.mark.parametrize(
    ("text", "found"),
    {
        f"Answer: {A}, {B}": None,
        f"Answer:\n{A}\n{B}\n{A}": None,
        f"Answer:\n\n{A}\n\n{B}\n\nGO": None,
        f"Answer: {A}\n\nThe protein ha": A,
    }.items(),
)
def test_a_list_that_was_cut_is_no_answer(text: str, found: str | None, terms: Terms) -> None:
    assert lenient.read(text, terms, finished=False) == found


@given(
    ids=st.lists(st.sampled_from(LIVE), min_size=1),
    between=st.sampled_from([",", ", ", "; ", "\n", "\n- ", " and ", " "]),
)
def test_a_list_is_read_as_the_strict_reading_of_its_terms(ids: list[str], between: str, terms: Terms) -> None:
    strict = terms.parse(completion("", ", ".join(dict.fromkeys(ids))))
    assert strict is not None
    assert lenient.read(f"Answer: {between.join(ids)}", terms) == strict


def test_lenient_metrics_are_the_strict_ones_of_other_answers(terms: Terms) -> None:
    gold, found = [A, B], [A, None]
    assert set(lenient.score(gold, found, terms)) == {"accuracy_lenient", "f1_micro_lenient"}
    assert lenient.score(gold, found, terms)["f1_micro_lenient"] == terms.score(gold, found)["f1_micro"]
    labels = lenient.score(["melanoma", "type 1"], ["melanoma", None], DISEASES)
    assert labels == {"accuracy_lenient": DISEASES.score(["melanoma", "type 1"], ["melanoma", None])["accuracy"]}
