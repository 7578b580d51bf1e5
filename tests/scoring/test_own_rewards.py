"""Reward functions of the user: called, checked, recorded; and rewards in a config and a run."""

import copy
import json
import os
import re

import pytest
from outputs import HONEST, NAMES, PAPER, SPACE, THOUGHT

import clones
from cisterna import cli, study
from cisterna.artifacts import files
from cisterna.errors import UserError
from cisterna.scoring import gene_ontology, rewards
from clones import CONFIG, edited
from runs import RL, Run

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


def test_a_reward_of_the_users_own_is_called_with_output_answer_and_labels(mine, scores, tokenizer):
    name = "study/my_file.py:graded"
    outputs = [f"{THOUGHT}Answer: spliced", f"{THOUGHT}Answer: skipped"]
    assert scores({name: 0.3, "correct": 2.0}, outputs, ["spliced"] * 2) == [[0.75, 0.25], [1.0, 0.0]]
    functions, weights = rewards.trl_functions({name: 0.3}, SPACE, tokenizer)
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
def test_a_file_or_function_that_is_not_there_is_refused(mine, tokenizer, name, message):
    with pytest.raises(UserError, match=message):
        rewards.trl_functions({name: 1.0}, SPACE, tokenizer)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(:\n", r"study/my_file\.py:1: .*SyntaxError"),
        ("\n\nimport no_such_package\n", r"study/my_file\.py:3: .*ModuleNotFoundError: .*'no_such_package'"),
        ("x = 1\ny = x / 0\n", r"study/my_file\.py:2: .*ZeroDivisionError"),
    ],
)
def test_a_file_that_cannot_be_run_is_refused_with_its_line(mine, tokenizer, source, message):
    mine.write_text(source)
    with pytest.raises(UserError, match=message):
        rewards.trl_functions({"study/my_file.py:f": 1.0}, SPACE, tokenizer)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("ratio", r"study/my_file\.py:18: the reward failed: ZeroDivisionError: .*; in completion 1 of 3: '<think>"),
        ("missing", r"study/my_file\.py:21: missing returned None.* completion 1 of 3"),
        ("text", r"study/my_file\.py:25: text returned '1\.0'"),
        ("endless", r"endless returned inf"),
        ("none_at_all", r"none_at_all returned nan"),
    ],
)
def test_a_reward_that_fails_ends_the_run_with_completion_file_and_line(mine, tokenizer, function, message):
    (reward,), _ = rewards.trl_functions({f"study/my_file.py:{function}": 1.0}, SPACE, tokenizer)
    whole = tokenizer(f"{HONEST}{tokenizer.eos_token}", add_special_tokens=False)["input_ids"]
    with pytest.raises(UserError, match=message):
        reward(completion_ids=[whole[:-1], whole, whole], answer=["spliced"] * 3)


def test_an_edit_within_the_same_second_and_of_the_same_length_is_seen(mine, tokenizer):
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


def test_rl_is_paid_by_all_rewards_of_its_recipe_and_records_the_users_file(solved, splice, tmp_path, mine, capsys):
    own = "def short(output, answer, labels):\n    return 1.0 / (1 + len(output))\n"
    mine.write_text(own)
    recipe = RL | {"rewards": PAPER | {"study/my_file.py:short": 0.5}, "concise_words": 1}
    first = Run("rl", solved.output, splice, tmp_path, recipe, 1, ladder=True).here()
    before = first.manifest
    assert {"reward study/my_file.py": before["data"]["reward study/my_file.py"]} == rewards.hashes(
        recipe["rewards"], {}
    )
    means = {key.split("/")[1] for entry in first.history for key in entry if key.startswith("rewards/")}
    assert means == {*PAPER, "study.my_file.py:short"}
    paid = {name: max(entry.get(f"rewards/{name}/mean", 0) for entry in first.history) for name in means}
    assert paid["correct"] > 0 == paid["concise"]  # an answer has two words
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
    assert cli.main(run.arguments) == 2
    error = capsys.readouterr().err
    assert re.search(r"study/my_file\.py:18: the reward failed: ZeroDivisionError.* in completion \d+ of 16", error)
    assert "Traceback" not in error
    assert not run.output.exists()


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
    task = {"adapter": "go-terms", "file": "proteins.csv", "options": {"ontology": "go.obo"}, "ood": ["Danio rerio"]}
    config["tasks"]["hairpin"] = task
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
