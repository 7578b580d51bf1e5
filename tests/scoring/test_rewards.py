"""Rewards pay for what docs/rewards.md says, and for nothing that only looks like it."""

import random
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from outputs import HONEST, LABELS, NAMES, PAPER, SPACE, THOUGHT

from cisterna.errors import UserError
from cisterna.scoring import answers, gene_ontology, rewards, term_sets
from cisterna.scoring.answers import Labels, Terms
from terms import LIVE, ROOTS
from tiny import ROOT

# Outputs that answer nothing, with what `tags` pays for them: a third for each tag that stands once, in order.
GAMING = {
    "all labels named": (f"{THOUGHT}Answer: spliced skipped", 3),
    "all labels with a comma": (f"{THOUGHT}Answer: spliced, skipped", 3),
    "one answer for each label": (f"{THOUGHT}Answer: spliced\nAnswer: skipped", 2),
    "right label twice": (f"{THOUGHT}Answer: spliced spliced", 3),
    "right answer twice": (f"{THOUGHT}Answer: spliced\nAnswer: spliced", 2),
    "text after": (f"{THOUGHT}Answer: spliced, I am sure", 3),
    "full stop after": (f"{THOUGHT}Answer: spliced.", 3),
    "text before": (f"{THOUGHT}So: Answer: spliced", 3),
    "label in the thought only": ("<think>Answer: spliced</think>", 0),
    "thought not closed": ("<think>it is Answer: spliced", 2),
    "no thought": ("Answer: spliced", 1),
    "answer, then thought": ("Answer: spliced<think>sure</think>", 0),
    "second thought after": (f"{THOUGHT}Answer: spliced</think>", 2),
    "no prefix": (f"{THOUGHT}spliced", 2),
    "prefix of another case": (f"{THOUGHT}answer: spliced", 2),
    "label of another case": (f"{THOUGHT}Answer: Spliced", 3),
    "part of a label": (f"{THOUGHT}Answer: splice", 3),
    "no label": (f"{THOUGHT}Answer: ", 3),
    "label of no task": (f"{THOUGHT}Answer: other", 3),
    "tags and nothing else": ("<think></think>Answer: ", 3),
    "tags inside text": ("I write <think> and </think> and Answer: because they pay", 3),
    "tags again and again": ("<think></think>Answer: " * 5, 0),
    "tags backwards": ("Answer: </think><think>", 0),
    "nothing": ("", 0),
}
# Outputs that do answer, each with what it earns: correct, concise, format, tags, well_formed.
ANSWERED = {
    "honest": (HONEST, (1, 1, 1, 1, 1)),
    "white space around": (f"\n{THOUGHT}\n\nAnswer: spliced \n", (1, 1, 1, 1, 1)),
    "wrong": (f"{THOUGHT}Answer: skipped", (0, 0, 1, 1, 1)),
    "wrong and no thought": ("<think></think>Answer: skipped", (0, 0, 0, 1, 1)),
    "empty thought": ("<think></think>Answer: spliced", (1, 1, 0, 1, 1)),
    "blank thought": ("<think> \n </think>Answer: spliced", (1, 1, 0, 1, 1)),
    "thought not opened": ("+1 match</think>Answer: spliced", (1, 1, 0, 2 / 3, 1)),
    "answer in the thought too": ("<think>Answer: skipped? No.</think>Answer: spliced", (1, 1, 0, 2 / 3, 1)),
    "right answer in the thought, wrong one after": (
        "<think>Answer: spliced</think>Answer: skipped",
        (0, 0, 0, 2 / 3, 1),
    ),
    "two thoughts": (f"{THOUGHT}{THOUGHT}Answer: spliced", (1, 1, 0, 1 / 3, 1)),
    "two whole outputs": (f"{HONEST}{HONEST}", (1, 1, 0, 0, 1)),
    "tag inside the thought": ("<think>a <think> b</think>Answer: spliced", (1, 1, 0, 2 / 3, 1)),
    "text before the thought": (f"Sure. {HONEST}", (1, 1, 0, 1, 1)),
    "20 words beside the thought": (f"{'so ' * 18}{HONEST}", (1, 1, 0, 1, 1)),
    "21 words beside the thought": (f"{'so ' * 19}{HONEST}", (1, 0, 0, 1, 1)),
    "long talk between two thoughts": (f"{THOUGHT}{'so ' * 30}{HONEST}", (1, 0, 0, 1 / 3, 1)),
    "long talk that is no thought": (f"{'so ' * 30}</think>Answer: spliced", (1, 0, 0, 2 / 3, 1)),
    "very long thought": (f"<think>{'match ' * 5000}</think>Answer: spliced", (1, 1, 1, 1, 1)),
    "very short thought": ("<think>.</think>Answer: spliced", (1, 1, 1, 1, 1)),
}


def paid(output, answer="spliced", space=SPACE, weights=PAPER):
    """The weighted sum that GRPO's advantages are made of."""
    return sum(weight * rewards.REWARDS[name](output, answer, space) for name, weight in weights.items())


@pytest.mark.parametrize(("output", "tags"), GAMING.values(), ids=GAMING)
def test_gaming_earns_nothing_but_the_tags(output, tags, scores):
    found = scores(dict.fromkeys(NAMES, 1.0), [output], ["spliced"])
    assert found == [[0.0], [0.0], [0.0], [tags / 3], [0.0]]


@pytest.mark.parametrize(("output", "expected"), ANSWERED.values(), ids=ANSWERED)
def test_an_answer_earns_what_the_page_says(output, expected, scores):
    found = scores(dict.fromkeys(NAMES, 1.0), [output], ["spliced"])
    assert [value for (value,) in found] == pytest.approx(expected)


def test_no_output_earns_more_than_an_honest_right_one_and_none_without_it_a_third_of_that():
    best = paid(HONEST)
    assert best == 3.75
    for output, _ in [*GAMING.values(), *ANSWERED.values()]:
        assert paid(output) <= best
        if SPACE.parse(output) != "spliced":
            assert paid(output) <= 1.25 <= best / 3


PIECES = st.sampled_from([*LABELS, "Answer: ", " ", "\n", "</think>", "<think>", ",", "match", ".", HONEST])


@given(st.lists(PIECES, max_size=14).map("".join))
@settings(max_examples=400)
def test_whatever_is_written_each_reward_is_in_its_range_and_only_the_right_answer_pays(output):
    values = {name: rewards.REWARDS[name](output, "spliced", SPACE) for name in NAMES}
    assert all(0.0 <= value <= 1.0 for value in values.values())
    right = answers.parse(output, LABELS) == "spliced"
    assert values["correct"] == right
    assert values["concise"] <= right
    assert values["format"] <= values["well_formed"]
    assert values["format"] <= values["tags"]
    assert paid(output) <= (paid(HONEST) if right else 0.75)


def test_each_completion_is_compared_with_its_own_gold_answer(scores):
    outputs = [f"{THOUGHT}Answer: {label}" for label in ("spliced", "skipped", "spliced")]
    assert scores({"correct": 1.0}, outputs, ["spliced", "skipped", "skipped"]) == [[1.0, 1.0, 0.0]]


def test_a_label_that_begins_another_label_is_not_taken_for_it(scores):
    space = Labels(("active", "active site"))
    outputs = [f"{THOUGHT}Answer: active", f"{THOUGHT}Answer: active site"]
    assert scores({"correct": 1.0}, outputs, ["active site", "active site"], space) == [[0.0, 1.0]]


@pytest.mark.parametrize("names", [["correct", "well_formed"], ["well_formed", "correct"]])
def test_functions_and_weights_come_in_the_order_of_the_recipe(names, scores, tokenizer):
    weights = {name: number + 0.5 for number, name in enumerate(names)}
    functions, values = rewards.trl_functions(weights, SPACE, tokenizer)
    assert [function.__name__ for function in functions] == names  # the name that TRL logs
    assert values == list(weights.values())
    wrong = f"{THOUGHT}Answer: skipped"
    expected = {"correct": 0.0, "well_formed": 1.0}
    assert [row[0] for row in scores(weights, [wrong], ["spliced"])] == [expected[name] for name in names]


def test_a_reward_that_does_not_exist_is_named_with_those_that_do(tokenizer):
    with pytest.raises(
        UserError, match=r"rewards \['corect', 'short'\] do not exist; .*concise.*correct.*PATH:FUNCTION"
    ):
        rewards.trl_functions({"correct": 1.0, "short": 1.0, "corect": 0.5}, SPACE, tokenizer)


def test_a_completion_cut_before_its_end_earns_nothing_from_any_reward(tokenizer, tmp_path):
    (tmp_path / "mine.py").write_text("def always(output, answer, labels):\n    return 1.0\n")
    names = [*NAMES, f"{tmp_path / 'mine.py'}:always"]
    functions, _ = rewards.trl_functions(dict.fromkeys(names, 1.0), SPACE, tokenizer)
    whole = tokenizer(f"{THOUGHT}Answer: spliced{tokenizer.eos_token}", add_special_tokens=False)["input_ids"]
    for function in functions:
        assert function(completion_ids=[whole, whole[:-1]], answer=["spliced"] * 2) == [1.0, 0.0]


@pytest.mark.parametrize("inserted", ["<|pad|>", "<|rna:A|>", "<rna>", "<think>"])
def test_a_token_of_structure_in_an_answer_is_not_read_over(scores, inserted):
    output = f"{THOUGHT}Answer: spl{inserted}iced"
    names = ("correct", "concise", "format", "well_formed")
    assert scores(dict.fromkeys(names, 1.0), [output], ["spliced"]) == [[0.0]] * 4


def test_a_residue_token_is_not_the_letter_that_is_a_label(scores):
    outputs = [f"{THOUGHT}Answer: {text}" for text in ("A", "<|rna:A|>", "<rna><|rna:A|></rna>", "<rna>A</rna>")]
    assert scores({"correct": 1.0}, outputs, ["A"] * 4, Labels(("A", "U"))) == [[1.0, 0.0, 0.0, 0.0]]


def written(terms):
    return f"<think>a kinase</think>Answer: {', '.join(terms)}"


TRUE = "GO:0000005, GO:0000022"


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        (["GO:0000022", "GO:0000005"], 1.0),
        (["GO:0000005", "GO:0000022", "GO:0000004", "GO:0000002"], 1.0),  # what they imply, written out
        (["GO:0000005", "GO:0000022", "GO:0000093"], 1.0),  # the alternative id of an implied term
        (["GO:0000005"], 2 * 4 / (4 + 5)),
        (["GO:0000002"], 2 * 1 / (1 + 5)),
        (["GO:0000005", "GO:0000024"], 2 * 5 / (7 + 5)),  # more specific than what is known
        (["GO:0000014"], 0.0),
        (sorted(ROOTS), 0.0),
        (sorted(LIVE), 2 * 5 / (12 + 5)),
        (["GO:0000005", "GO:0000022", "GO:0099999"], 2 * 5 / (6 + 5)),  # no such term
        (["GO:0000005", "GO:0000022", "GO:0000081"], 2 * 5 / (6 + 5)),  # obsolete
        (["GO:0000005", "GO:0000005", "GO:0000022"], 0.0),  # malformed: one twice
    ],
)
def test_go_f1_pays_the_overlap_of_the_propagated_sets(go, scores, terms, expected):
    (found,) = scores({"go_f1": 1.0}, [written(terms)], [TRUE], Terms(go))
    assert found == [pytest.approx(expected)]


@given(st.lists(st.sampled_from([*LIVE, *ROOTS, "GO:0099999"]), unique=True, min_size=1))
def test_no_set_of_terms_earns_more_than_the_true_one(go, terms):
    for space in (Terms(go), Terms(go.weighted({term: 1 + int(term[3:]) for term in LIVE}))):
        weights = PAPER | {"go_f1": 1.0}
        honest = paid(written(TRUE.split(", ")), TRUE, space, weights)
        assert honest == sum(PAPER.values()) + 1
        assert rewards.go_f1(written(terms), TRUE, space) <= 1.0
        assert paid(written(terms), TRUE, space, weights) <= honest


def test_a_thousand_frequent_terms_earn_little_and_the_best_blind_answer_less_with_weights():
    rng = random.Random(2)
    size = 2500
    names = [f"GO:{number:07}" for number in range(size)]
    parents = {names[0]: ()} | {
        names[number]: tuple(sorted({names[rng.randrange(max(1, number // 3) + 1) % number] for _ in range(2)}))
        for number in range(1, size)
    }
    big = gene_ontology.Ontology("made", dict.fromkeys(names, "molecular_function"), parents, {}, frozenset())
    proteins = [big.specific(rng.sample(names[1:], 5)) for _ in range(100)]
    weighted = big.weighted(gene_ontology.information_accretion(proteins, big))
    times = {term: sum(term in terms for terms in map(big.propagate, proteins)) for term in names}
    thousand = sorted(names[1:], key=lambda term: -times[term])[:1000]
    gold = answers.join(proteins[0])
    counts = term_sets.overlap(thousand, proteins[0], big).sum(axis=0)
    plain = rewards.go_f1(written(thousand), gold, Terms(big))
    assert counts[0] > 0.8 * counts[2]  # nearly all that is true is among them
    assert plain == pytest.approx(2 * counts[0] / (counts[1] + counts[2]))
    assert plain < 0.2
    assert rewards.go_f1(written(thousand), gold, Terms(weighted)) < 0.2
    # The best answer that is the same for all proteins: its reward is the prior, which weights make worth less.
    prior, informed = (_blind(proteins, mine) for mine in (big, weighted))
    assert informed < 0.9 * prior < 0.9


def _blind(proteins, known):
    """The mean reward of the best answer that is the same for all proteins."""
    output = written(term_sets.frequent(proteins, known))
    return sum(rewards.go_f1(output, answers.join(terms), Terms(known)) for terms in proteins) / len(proteins)


def test_correct_and_concise_of_terms_are_for_exactly_the_gold_set(go):
    space = Terms(go)
    assert paid(written(["GO:0000022", "GO:0000005"]), TRUE, space, {"correct": 1.0, "concise": 1.0}) == 2.0
    assert paid(written(["GO:0000005"]), TRUE, space, {"correct": 1.0, "concise": 1.0}) == 0.0
    many = [f"GO:{number:07}" for number in range(20)]
    assert rewards.concise(written(many[:19]), answers.join(many[:19]), space) == 1.0
    assert rewards.concise(written(many), answers.join(many), space) == 0.0  # 21 words with the prefix
    assert rewards.correct(written(many), answers.join(many), space) == 1.0


def test_go_f1_is_refused_where_answers_are_labels(tokenizer):
    with pytest.raises(UserError, match=r"rewards \['go_f1'\] compare sets of GO terms.*labels; use correct"):
        rewards.trl_functions({"go_f1": 1.0}, SPACE, tokenizer)


def test_the_page_names_every_reward_and_its_limit():
    page = (ROOT / "docs" / "rewards.md").read_text()
    assert set(re.findall(r"^## `(\w+)`", page, re.MULTILINE)) == set(rewards.REWARDS)
    assert f"Without the key the limit is {rewards.CONCISE} words" in page


def test_the_page_and_the_config_of_the_paper_have_the_same_weights_and_limit():
    recipes = yaml.safe_load((ROOT / "config" / "paper.yaml").read_text())["recipes"]["rl"].values()
    rewarded = [recipe for recipe in recipes if "concise" in recipe["rewards"]]
    assert {tuple(recipe["rewards"].items()) for recipe in rewarded} == {tuple(PAPER.items())}
    (words,) = {recipe["concise_words"] for recipe in rewarded}
    page = (ROOT / "docs" / "rewards.md").read_text()
    (shown,) = re.findall(r"^      rewards: (.*)$", page, re.MULTILINE)
    assert {name: weight for name, weight in yaml.safe_load(shown).items() if ":" not in name} == PAPER
    assert f"      concise_words: {words}\n" in page
    assert f"an honest right answer earns {sum(PAPER.values())}, and" in page
    assert f"a wrong one in perfect form earns {PAPER['format'] + PAPER['tags']}" in page


def test_the_words_that_concise_allows_are_a_key_of_the_recipe(scores):
    outputs = [f"{' '.join(['so'] * count)} {HONEST}" for count in (8, 9, 18, 19)]  # and two words of the answer
    for limits, expected in (({}, [1.0, 1.0, 1.0, 0.0]), ({"concise_words": 10}, [1.0, 0.0, 0.0, 0.0])):
        assert scores({"concise": 1.0}, outputs, ["spliced"] * 4, **limits) == [expected]
