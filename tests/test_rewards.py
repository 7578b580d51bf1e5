"""Rewards pay for one well-formed answer and for nothing that only looks like one."""

import pytest

from cisterna import rewards, tokenizer
from cisterna.errors import UserError

LABELS = ["spliced", "skipped"]
THOUGHT = "<think>+1 match +2 match</think>"
GAMING = {
    "all labels named": f"{THOUGHT}Answer: spliced skipped",
    "all labels with a comma": f"{THOUGHT}Answer: spliced, skipped",
    "one answer for each label": f"{THOUGHT}Answer: spliced\nAnswer: skipped",
    "right label twice": f"{THOUGHT}Answer: spliced spliced",
    "right answer twice": f"{THOUGHT}Answer: spliced\nAnswer: spliced",
    "text after": f"{THOUGHT}Answer: spliced, I am sure",
    "full stop after": f"{THOUGHT}Answer: spliced.",
    "text before": f"{THOUGHT}So: Answer: spliced",
    "label in the thought only": "<think>Answer: spliced</think>",
    "thought not closed": "<think>it is Answer: spliced",
    "no thought": "Answer: spliced",
    "answer, then thought": "Answer: spliced<think>sure</think>",
    "second thought after": f"{THOUGHT}Answer: spliced</think>",
    "no prefix": f"{THOUGHT}spliced",
    "prefix of another case": f"{THOUGHT}answer: spliced",
    "label of another case": f"{THOUGHT}Answer: Spliced",
    "part of a label": f"{THOUGHT}Answer: splice",
    "no label": f"{THOUGHT}Answer: ",
    "nothing": "",
}


@pytest.fixture(scope="module")
def tokens(base):
    return tokenizer.load(base)


@pytest.fixture
def scores(tokens):
    """One row a reward, as TRL calls them: with every column of the data set, the token ids and its text of them."""

    def score(weights, completions, golds, labels=LABELS):
        functions, _ = rewards.trl_functions(weights, labels, tokens)
        ids = [tokens(text + tokens.eos_token, add_special_tokens=False)["input_ids"] for text in completions]
        texts = tokens.batch_decode(ids, skip_special_tokens=True)
        return [
            function(prompts=["?"] * len(golds), completions=texts, completion_ids=ids, answer=golds)
            for function in functions
        ]

    return score


@pytest.mark.parametrize("output", GAMING.values(), ids=GAMING)
def test_gaming_earns_nothing_from_any_reward(output, scores):
    assert scores(dict.fromkeys(rewards.REWARDS, 1.0), [output], ["spliced"]) == [[0.0]] * len(rewards.REWARDS)


def test_only_the_right_answer_is_correct_and_a_wrong_one_is_still_well_formed(scores):
    outputs = [
        f"{THOUGHT}Answer: spliced",
        f"{THOUGHT}Answer: skipped",
        f"{THOUGHT}Answer: other",
        f"{THOUGHT}Answer: spliced\n",
    ]
    correct, formed = scores({"correct": 1.0, "well_formed": 0.1}, outputs, ["spliced"] * 4)
    assert correct == [1.0, 0.0, 0.0, 1.0]
    assert formed == [1.0, 1.0, 0.0, 1.0]


def test_each_completion_is_compared_with_its_own_gold_answer(scores):
    outputs = [f"{THOUGHT}Answer: {label}" for label in ("spliced", "skipped", "spliced")]
    assert scores({"correct": 1.0}, outputs, ["spliced", "skipped", "skipped"]) == [[1.0, 1.0, 0.0]]


def test_a_label_that_begins_another_label_is_not_taken_for_it(scores):
    labels = ["active", "active site"]
    outputs = [f"{THOUGHT}Answer: active", f"{THOUGHT}Answer: active site"]
    assert scores({"correct": 1.0}, outputs, ["active site", "active site"], labels) == [[0.0, 1.0]]


@pytest.mark.parametrize("names", [["correct", "well_formed"], ["well_formed", "correct"], ["well_formed"]])
def test_functions_and_weights_come_in_the_order_of_the_recipe(names, scores, tokens):
    weights = {name: number + 0.5 for number, name in enumerate(names)}
    functions, values = rewards.trl_functions(weights, LABELS, tokens)
    assert [function.__name__ for function in functions] == names  # the name that TRL logs
    assert values == list(weights.values())
    wrong = f"{THOUGHT}Answer: skipped"
    expected = {"correct": 0.0, "well_formed": 1.0}
    assert [row[0] for row in scores(weights, [wrong], ["spliced"])] == [expected[name] for name in names]


def test_a_reward_that_does_not_exist_is_named_with_those_that_do(tokens):
    with pytest.raises(UserError, match=r"rewards \['concise', 'tags'\] do not exist; .*correct.*well_formed"):
        rewards.trl_functions({"correct": 1.0, "tags": 1.0, "concise": 0.5}, LABELS, tokens)


def test_a_completion_cut_before_its_end_earns_nothing(tokens):
    (correct,), _ = rewards.trl_functions({"correct": 1.0}, LABELS, tokens)
    whole = tokens(f"{THOUGHT}Answer: spliced{tokens.eos_token}", add_special_tokens=False)["input_ids"]
    assert correct(completion_ids=[whole, whole[:-1]], answer=["spliced"] * 2) == [1.0, 0.0]


@pytest.mark.parametrize("inserted", ["<|pad|>", "<|rna:A|>", "<rna>", "<think>"])
def test_a_token_of_structure_in_an_answer_is_not_read_over(scores, inserted):
    output = f"{THOUGHT}Answer: spl{inserted}iced"
    assert scores(dict.fromkeys(rewards.REWARDS, 1.0), [output], ["spliced"]) == [[0.0]] * len(rewards.REWARDS)


def test_a_residue_token_is_not_the_letter_that_is_a_label(scores):
    outputs = [f"{THOUGHT}Answer: {text}" for text in ("A", "<|rna:A|>", "<rna><|rna:A|></rna>", "<rna>A</rna>")]
    assert scores({"correct": 1.0}, outputs, ["A"] * 4, ["A", "U"]) == [[1.0, 0.0, 0.0, 0.0]]
