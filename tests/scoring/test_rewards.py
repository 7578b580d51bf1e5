"""Rewards pay for what docs/rewards.md says, and for nothing that only looks like it."""

import copy
import json
import os
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clones
from cisterna import cli, study
from cisterna.artifacts import files
from cisterna.errors import UserError
from cisterna.scoring import answers, gene_ontology, rewards, term_sets
from cisterna.scoring.answers import Labels, Terms
from cisterna.sequences import tokenization
from clones import CONFIG, edited
from runs import RL, Run
from terms import LIVE, ROOTS
from tiny import ROOT

LABELS = ("spliced", "skipped")
SPACE = Labels(LABELS)
PAPER = {"correct": 2.0, "concise": 0.5, "format": 0.5, "tags": 0.25}  # BioReason's weights
THOUGHT = "<think>+1 match +2 match</think>"
HONEST = f"{THOUGHT}Answer: spliced"

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
NAMES = ("correct", "concise", "format", "tags", "well_formed")


@pytest.fixture(scope="module")
def tokens(base):
    return tokenization.load(base)


@pytest.fixture
def scores(tokens):
    """One row a reward, as TRL calls them: with every column of the data set, the token ids and its text of them."""

    def score(weights, completions, golds, space=SPACE):
        functions, _ = rewards.trl_functions(weights, space, tokens)
        ids = [tokens(text + tokens.eos_token, add_special_tokens=False)["input_ids"] for text in completions]
        texts = tokens.batch_decode(ids, skip_special_tokens=True)
        return [
            function(prompts=["?"] * len(golds), completions=texts, completion_ids=ids, answer=golds)
            for function in functions
        ]

    return score


def paid(output, answer="spliced", space=SPACE, weights=PAPER):
    """The weighted sum that GRPO's advantages are made of."""
    return sum(weight * rewards.REWARDS[name](output, answer, space) for name, weight in weights.items())


# --- Gaming ---


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
    assert best == 3.25
    for output, _ in [*GAMING.values(), *ANSWERED.values()]:
        assert paid(output) <= best
        if SPACE.parse(output) != "spliced":
            assert paid(output) <= 0.75 < best / 3


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
    space = Labels(("active", "active site"))
    outputs = [f"{THOUGHT}Answer: active", f"{THOUGHT}Answer: active site"]
    assert scores({"correct": 1.0}, outputs, ["active site", "active site"], space) == [[0.0, 1.0]]


@pytest.mark.parametrize("names", [["correct", "well_formed"], ["well_formed", "correct"], ["format", "well_formed"]])
def test_functions_and_weights_come_in_the_order_of_the_recipe(names, scores, tokens):
    weights = {name: number + 0.5 for number, name in enumerate(names)}
    functions, values = rewards.trl_functions(weights, SPACE, tokens)
    assert [function.__name__ for function in functions] == names  # the name that TRL logs
    assert values == list(weights.values())
    wrong = f"{THOUGHT}Answer: skipped"
    expected = {"correct": 0.0, "well_formed": 1.0, "format": 1.0}
    assert [row[0] for row in scores(weights, [wrong], ["spliced"])] == [expected[name] for name in names]


def test_a_reward_that_does_not_exist_is_named_with_those_that_do(tokens):
    with pytest.raises(
        UserError, match=r"rewards \['corect', 'short'\] do not exist; .*concise.*correct.*PATH:FUNCTION"
    ):
        rewards.trl_functions({"correct": 1.0, "short": 1.0, "corect": 0.5}, SPACE, tokens)


def test_a_completion_cut_before_its_end_earns_nothing_from_any_reward(tokens, tmp_path):
    (tmp_path / "mine.py").write_text("def always(output, answer, labels):\n    return 1.0\n")
    names = [*NAMES, f"{tmp_path / 'mine.py'}:always"]
    functions, _ = rewards.trl_functions(dict.fromkeys(names, 1.0), SPACE, tokens)
    whole = tokens(f"{THOUGHT}Answer: spliced{tokens.eos_token}", add_special_tokens=False)["input_ids"]
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


# --- Sets of terms ---


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
        assert honest == 4.25
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


def test_go_f1_is_refused_where_answers_are_labels(tokens):
    with pytest.raises(UserError, match=r"rewards \['go_f1'\] compare sets of GO terms.*labels; use correct"):
        rewards.trl_functions({"go_f1": 1.0}, SPACE, tokens)


# --- The user's own ---

OWN = '''"""Rewards of my own."""
import dataclasses
import math


@dataclasses.dataclass
class Table:
    bonus: float = 0.25


def graded(output, answer, labels):
    assert tuple(labels) == ("spliced", "skipped")
    return Table().bonus + (0.5 if output.endswith(answer) else 0.0)


def ratio(output, answer, labels):
    size = len(output) - len(output)
    return 1.0 / size


def missing(output, answer, labels):
    pass


def text(output, answer, labels):
    return "1.0"


def endless(output, answer, labels):
    return math.inf


def none_at_all(output, answer, labels):
    return math.nan


NUMBER = 3
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A clone with a file of rewards, in which commands are run."""
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "my_file.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "study" / "my_file.py"


def test_a_reward_of_the_users_own_is_called_with_output_answer_and_labels(mine, scores, tokens):
    name = "study/my_file.py:graded"
    outputs = [f"{THOUGHT}Answer: spliced", f"{THOUGHT}Answer: skipped"]
    assert scores({name: 0.3, "correct": 2.0}, outputs, ["spliced"] * 2) == [[0.75, 0.25], [1.0, 0.0]]
    functions, weights = rewards.trl_functions({name: 0.3}, SPACE, tokens)
    assert [function.__name__ for function in functions] == ["study.my_file.py:graded"]
    assert weights == [0.3]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("study/no_file.py:graded", r"study/no_file\.py: no such file; a reward .* PATH:FUNCTION"),
        ("study:graded", r"study: no such file"),
        (":graded", r"no such file"),
        ("study/my_file.py:grade", r"my_file\.py: has no function 'grade'.*It defines: .*endless, graded"),
        ("study/my_file.py:NUMBER", r"my_file\.py: has no function 'NUMBER'"),
        ("study/my_file.py:", r"my_file\.py: has no function ''"),
    ],
)
def test_a_file_or_function_that_is_not_there_is_refused(mine, tokens, name, message):
    with pytest.raises(UserError, match=message):
        rewards.trl_functions({name: 1.0}, SPACE, tokens)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(:\n", r"study/my_file\.py:1: .*SyntaxError"),
        (
            "\n\nimport no_such_package\n",
            r"study/my_file\.py:3: .*ModuleNotFoundError: No module named 'no_such_package'",
        ),
        ("x = 1\ny = x / 0\n", r"study/my_file\.py:2: .*ZeroDivisionError"),
    ],
)
def test_a_file_that_cannot_be_run_is_refused_with_its_line(mine, tokens, source, message):
    mine.write_text(source)
    with pytest.raises(UserError, match=message):
        rewards.trl_functions({"study/my_file.py:f": 1.0}, SPACE, tokens)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("ratio", r"study/my_file\.py:18: the reward failed: ZeroDivisionError: .*; in completion 1 of 3: '<think>"),
        ("missing", r"study/my_file\.py:21: missing returned None, and a reward has to be a finite number; in comp"),
        (
            "text",
            r"study/my_file\.py:25: text returned '1\.0', and a reward has to be a finite number; in completion 1 ",
        ),
        ("endless", r"endless returned inf, and"),
        ("none_at_all", r"none_at_all returned nan, and"),
    ],
)
def test_a_reward_that_fails_ends_the_run_with_completion_file_and_line(mine, tokens, function, message):
    (reward,), _ = rewards.trl_functions({f"study/my_file.py:{function}": 1.0}, SPACE, tokens)
    whole = tokens(f"{HONEST}{tokens.eos_token}", add_special_tokens=False)["input_ids"]
    with pytest.raises(UserError, match=message):
        reward(completion_ids=[whole[:-1], whole, whole], answer=["spliced"] * 3)


def test_an_edit_within_the_same_second_and_of_the_same_length_is_seen(mine, tokens):
    name = "study/my_file.py:graded"
    for value in ("0.25", "0.50", "0.75"):
        mine.write_text(f"def graded(output, answer, labels):\n    return {value}\n")
        assert rewards.own(name)("", "", SPACE) == float(value)
    assert not (mine.parent / "__pycache__").exists()


def test_hashes_name_each_file_once_and_change_with_it(mine):
    names = ["correct", "study/my_file.py:graded", "study/my_file.py:text"]
    before = rewards.hashes(names, {"labels": []})
    assert set(before) == {"reward study/my_file.py"}
    mine.write_text(OWN + "\n")
    assert rewards.hashes(names, {"labels": []}) != before
    assert rewards.hashes(["correct"], {"labels": []}) == {}
    card = {"answers": {"kind": "terms", "sha256": "0" * 64}}
    assert rewards.hashes(["go_f1"], card) == {gene_ontology.FILE: "0" * 64}


# --- In a run ---


def test_rl_is_paid_by_all_rewards_of_its_recipe_and_records_the_users_file(solved, splice, tmp_path, mine, capsys):
    own = "def short(output, answer, labels):\n    return 1.0 / (1 + len(output))\n"
    mine.write_text(own)
    recipe = RL | {"rewards": PAPER | {"study/my_file.py:short": 0.5}}
    first = Run("rl", solved.output, splice, tmp_path, recipe, 1, ladder=True).here()
    before = first.manifest
    assert {"reward study/my_file.py": before["data"]["reward study/my_file.py"]} == rewards.hashes(
        recipe["rewards"], {}
    )
    means = {key.split("/")[1] for entry in first.history for key in entry if key.startswith("rewards/")}
    assert means == {*PAPER, "study.my_file.py:short"}
    # The next rung goes on from the first; after an edit of the file it may not.
    capsys.readouterr()
    Run("rl", solved.output, splice, tmp_path, recipe, 2, ladder=True, previous=first).here()
    assert "resuming from step" in capsys.readouterr().out
    mine.write_text(own.replace("1.0", "2.0"))
    again = Run("rl", solved.output, splice, tmp_path, recipe, 1, ladder=True).here()
    assert "another run (data changed)" in capsys.readouterr().out
    assert again.manifest["data"]["reward study/my_file.py"] != before["data"]["reward study/my_file.py"]
    assert again.manifest["identity"] != before["identity"]


def test_a_failing_reward_ends_the_command_with_code_2_and_publishes_nothing(solved, splice, tmp_path, mine, capsys):
    run = Run("rl", solved.output, splice, tmp_path / "rl", RL | {"rewards": {"study/my_file.py:ratio": 1.0}}, 1)
    assert cli.main(run.command()[3:]) == 2
    error = capsys.readouterr().err
    assert re.search(r"study/my_file\.py:18: the reward failed: ZeroDivisionError.* in completion \d+ of 16", error)
    assert "Traceback" not in error
    assert not run.output.exists()


def test_the_page_names_every_reward_and_its_limit():
    page = (ROOT / "docs" / "rewards.md").read_text()
    assert set(re.findall(r"^## `(\w+)`", page, re.MULTILINE)) == set(rewards.REWARDS)
    assert f"{rewards.CONCISE} words" in page


# --- In a config and in a study ---

CONFIG = edited(lineages=[CONFIG["lineages"][0] | {"cpt": ["none"]}])


def with_rewards(**weights):
    config = copy.deepcopy(CONFIG)
    config["recipes"]["rl"]["grpo"]["rewards"] = weights
    return config


def test_a_config_may_name_every_reward_and_functions_of_its_own():
    weights = dict.fromkeys(NAMES, 0.5) | {"study/my_file.py:my_reward": 0.3, "my_file.py:other": 1}
    found = study.load(with_rewards(**weights))
    assert found.recipe("rl", "grpo")["rewards"] == weights
    assert found.reward_files("grpo") == ["my_file.py", "study/my_file.py"]
    assert study.load(CONFIG).reward_files("grpo") == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("corect", r"rewards\.corect: .*PATH\.py:FUNCTION.*Did you mean correct"),
        ("my_file.py", r"rewards\.my_file\.py: .*PATH\.py:FUNCTION"),
        ("my_file.py:", r"rewards\.my_file\.py:: "),
        ("my_file.txt:mine", r"rewards\.my_file\.txt:mine: "),
        ("my_file.py:not a name", r"rewards\.my_file\.py:not a name: "),
        ("my_{file}.py:mine", r"rewards\.my_\{file\}\.py:mine: .*braces"),
        ("go_f1", r"rewards\.go_f1: .*hairpin"),
    ],
)
def test_a_reward_that_cannot_be_meant_is_refused_in_the_config(name, message):
    with pytest.raises(UserError, match=message):
        study.load(with_rewards(**{"correct": 1.0, name: 0.5}))


def test_an_unknown_reward_beside_one_of_the_users_own_is_the_only_problem():
    with pytest.raises(UserError) as refused:
        study.load(with_rewards(**{"my_file.py:mine": 1.0, "corect": 0.5}))
    assert "corect" in str(refused.value)
    assert "my_file" not in str(refused.value)


def test_go_f1_is_for_tasks_of_terms():
    config = with_rewards(go_f1=1.0)
    config["tasks"]["hairpin"] = {
        "adapter": "go-terms",
        "file": "proteins.csv",
        "options": {"ontology": "go.obo"},
        "ood": ["Danio rerio"],
    }
    assert study.load(config).recipe("rl", "grpo")["rewards"] == {"go_f1": 1.0}


@pytest.mark.snakemake
@pytest.mark.slow
def test_an_edit_of_the_users_file_reruns_rl_and_its_evaluation_and_a_new_date_alone_does_not(tmp_path):
    clone = clones.make(tmp_path, with_rewards(**{"correct": 1.0, "tables/mine.py:mine": 0.5}))
    file = clone.folder / "tables" / "mine.py"
    source = "def mine(output, answer, labels):\n    return {} / (1 + len(output))\n"
    file.write_text(source.format(1.0))
    folder = clone.results / "models/tiny/base/hairpin/s0/sft-brief/e2/rl-grpo/e1"
    evaluation = str((folder / "eval").relative_to(clone.folder))
    clone.snakemake(evaluation)
    manifest = json.loads((folder / "checkpoint" / "manifest.json").read_text())
    assert manifest["data"]["reward tables/mine.py"] == files.sha256(file)
    os.utime(file)
    assert clone.todo(evaluation) == []
    file.write_text(source.format(2.0))
    assert [job.rule for job in clone.todo(evaluation)] == ["evaluate", "rl"]
