"""Few-shot answers of models that were not trained on the task."""

import json

import pandas as pd
import pytest
from evaluations import OPTIONS

from cisterna import models, tasks
from cisterna.artifacts import files
from cisterna.errors import UserError
from cisterna.evaluation import evaluate, few_shot, generate
from cisterna.sequences import conventions, tokenization
from tiny import hub_model

TRAIN = pd.DataFrame({"answer": ["b", "b", "a", "b", "a", "c"]}, index=[10, 11, 12, 13, 14, 15])
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.mark.parametrize(
    ("number", "labels", "rows"),
    [(3, "abc", [10, 12, 15]), (5, "abc", [10, 11, 12, 14, 15]), (2, "", [10, 11]), (6, "abc", [*range(10, 16)])],
)
def test_shots_are_as_many_of_each_label_as_there_can_be_in_the_order_of_train(number, labels, rows):
    assert few_shot.choose(TRAIN, labels, number).index.tolist() == rows


def test_examples_are_turns_of_a_conversation_with_reasoning_and_answer(tmp_path):
    _, tokenizer = hub_model(tmp_path / "hub", tie=True, spare=0)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "hub")
    models.make_base({"pretrained": str(tmp_path / "hub")}, tmp_path / "base")
    loaded = tokenization.load(tmp_path / "base")
    shots = pd.DataFrame({"prompt": ["Which? <dna>A</dna>"], "reasoning": ["rare"], "answer": ["up"]})
    (ids,) = few_shot.encode(loaded, ["And <dna>C</dna>"], shots)
    expected = "[user]Which? <dna>A</dna>[assistant]<think>rare</think>Answer: up[user]And <dna>C</dna>[assistant]"
    assert ids == loaded(tokenization.expand(expected), add_special_tokens=False)["input_ids"]


def test_base_answers_after_examples_too_and_a_trained_model_does_not(base, trained, splice, tmp_path, monkeypatch):
    seen = []

    def written(loaded, prompts, options, saved=None, on_batch=None, sample=0):
        """Right after examples, and nothing without."""
        seen.append(prompts)
        gold = pd.read_parquet(splice / ("id.parquet" if len(seen) % 4 in (1, 2) else "ood.parquet"))["answer"]
        assert len(gold) == len(prompts)
        text = "<think>a</think>Answer: {}<|endoftext|>" if len(seen) % 2 == 0 else "none {}<|endoftext|>"
        return loaded.tokenizer([text.format(answer) for answer in gold], add_special_tokens=False)["input_ids"]

    monkeypatch.setattr(generate, "generate", written)
    scores = evaluate.evaluate(base, splice, tmp_path / "eval", OPTIONS | {"shots": 2})
    plain, shots = seen[0][0], seen[1][0]
    assert shots[-len(plain) :] == plain
    assert len(shots) > 2 * len(plain)
    assert conventions.turn_end_id(tokenization.load(base)) in shots
    for split in ("id", "ood"):
        values = {name: summary["value"] for name, summary in scores[split].items()}
        assert values["accuracy"] == 0
        assert values["accuracy_few_shot"] == values["accuracy_lenient_few_shot"] == 1
        assert values["balanced_accuracy_few_shot"] == 1
        found = pd.read_parquet(tmp_path / "eval" / f"{split}.parquet")
        assert found["few_shot_predicted"].tolist() == found["answer"].tolist()
    assert files.read_json(tmp_path / "eval" / "metrics.json") == json.loads(json.dumps(scores))
    assert "accuracy_few_shot" not in evaluate.evaluate(trained, splice, tmp_path / "sft", OPTIONS | {"shots": 2})["id"]
    with pytest.raises(UserError, match=r"evaluation\.shots: 5000, and train of splice-donor has \d+ examples"):
        evaluate.evaluate(base, splice, tmp_path / "more", OPTIONS | {"shots": 5000})


def test_killed_few_shot_answers_are_resumed(base, splice, tmp_path):
    options = OPTIONS | {"shots": 1}
    first = evaluate.evaluate(base, splice, tmp_path / "one", options, work=tmp_path / "work")
    assert (tmp_path / "work" / "id-shots-1" / "000000.json").is_file()
    again = evaluate.evaluate(base, splice, tmp_path / "two", options, work=tmp_path / "work")
    assert first == again


def test_answer_form_of_a_built_in_task_ends_its_prompts_with_the_labels():
    plain, stated = (tasks.load("cell-type", spec) for spec in ({}, {"answer_form": True}))
    form = 'End with the line "Answer: X", where X is one of b-cell, t-cell, cytotoxic, monocyte, dendritic.\n'
    raw = plain.open().head(3)
    prompts = [task.examples(raw)["prompt"].tolist() for task in (plain, stated)]
    assert prompts[1] == [prompt + form for prompt in prompts[0]]
    assert stated.prompt("CD3D IL7R") == "Which cell type? CD3D IL7R\n" + form
