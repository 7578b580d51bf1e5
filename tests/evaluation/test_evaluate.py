"""Evaluation: every example once, killed or not, and metrics that are those of the predictions."""

import contextlib
import shutil
from importlib.metadata import PackageNotFoundError

import numpy as np
import pandas as pd
import pytest
from evaluations import DEEP, LABELS, OPTIONS, contents
from sklearn.metrics import average_precision_score, roc_auc_score
from transformers import Qwen3ForCausalLM

from cisterna import cli, models
from cisterna.artifacts import files
from cisterna.data.splits import prepare
from cisterna.errors import UserError
from cisterna.evaluation import evaluate, generate, scores
from cisterna.scoring import answers, gene_ontology, metrics
from cisterna.scoring.answers import Labels
from cisterna.sequences import engines, tokenization
from terms import OBO
from tiny import ROOT, SIZES, backbone, publish


def test_every_example_is_there_once_with_its_gold_answer(evaluated, splice):
    for split in ("id", "ood"):
        given = pd.read_parquet(splice / f"{split}.parquet")
        found = pd.read_parquet(evaluated[0] / f"{split}.parquet")
        assert len(found) == SIZES[split]
        pd.testing.assert_frame_equal(found[["id", "prompt", "answer"]], given[["id", "prompt", "answer"]])
    assert names(evaluated[0]) == ["id.parquet", "metrics.json", "ood.parquet"]


def test_a_prediction_is_the_strict_reading_of_the_output_that_is_kept(evaluated, splice):
    labels = files.read_json(splice / "card.json")["labels"]
    frame = pd.concat([pd.read_parquet(evaluated[0] / f"{split}.parquet") for split in ("id", "ood")])
    assert frame["well_formed"].sum() > 0
    for row in frame.itertuples():
        expected = answers.parse(row.output, labels) if row.finished else None
        assert (row.predicted if isinstance(row.predicted, str) else None) == expected
        assert row.well_formed == (expected is not None)
        assert row.finished or row.tokens == OPTIONS["max_new_tokens"]
        assert row.tokens <= OPTIONS["max_new_tokens"]
        assert "<|endoftext|>" not in row.output
        assert "<|pad|>" not in row.output or not row.finished


def test_lenient_accuracy_is_that_of_the_answers_in_another_form_too(base, splice, tmp_path, monkeypatch):
    """The model is one that writes every label in one form after another: strict, lenient, two answers, and cut."""
    labels = files.read_json(splice / "card.json")["labels"]
    forms = ["<think>a</think>Answer: {}", "**Final answer:** {}.", f"{{}} or {' or '.join(labels)}"]

    def written(loaded, prompts, options, saved, on_batch, sample=0):
        texts = [
            forms[row % 3].format(labels[row % len(labels)].upper() if row % 3 else labels[0])
            for row in range(len(prompts))
        ]
        ids = loaded.tokenizer([f"{text}<|endoftext|>" for text in texts], add_special_tokens=False)["input_ids"]
        return [*ids[:-1], ids[1][:-1]]

    monkeypatch.setattr(generate, "generate", written)
    scores = evaluate.evaluate(base, splice, tmp_path / "eval", OPTIONS)
    for split in ("id", "ood"):
        found = pd.read_parquet(tmp_path / "eval" / f"{split}.parquet")
        rows = np.arange(len(found))
        found = found.astype(object).where(found.notna(), None)
        strict = [labels[0] if row % 3 == 0 else None for row in rows]
        lenient = [labels[row % len(labels)] if row % 3 == 1 else value for row, value in enumerate(strict)]
        assert found["predicted"].tolist() == [*strict[:-1], None]
        assert found["predicted_lenient"].tolist() == [*lenient[:-1], None]
        for metric, column in {"accuracy": "predicted", "accuracy_lenient": "predicted_lenient"}.items():
            summary = scores[split][metric]
            assert summary["value"] == pytest.approx((found[column] == found["answer"]).mean())
            assert summary["low"] <= summary["value"] <= summary["high"]
            assert summary["n"] == len(found)
        assert scores[split]["accuracy_lenient"]["value"] > scores[split]["accuracy"]["value"]


def test_metrics_agree_with_the_predictions_that_are_kept(evaluated, splice):
    labels = files.read_json(splice / "card.json")["labels"]
    written = files.read_json(evaluated[0] / "metrics.json")
    assert written == evaluated[1]
    for split in ("id", "ood"):
        frame = pd.read_parquet(evaluated[0] / f"{split}.parquet")
        right = (frame["predicted"] == frame["answer"]).mean()
        assert written[split]["accuracy"]["value"] == pytest.approx(right)
        assert written[split]["well_formed"]["value"] == pytest.approx(frame["well_formed"].mean())
        for label in labels:
            assert written[split][f"predicted:{label}"]["value"] == pytest.approx((frame["predicted"] == label).mean())
            assert written[split][f"gold:{label}"]["value"] == pytest.approx((frame["answer"] == label).mean())
        assert {metric["n"] for metric in written[split].values()} == {SIZES[split]}
        predicted = [value if isinstance(value, str) else None for value in frame["predicted"]]
        scores = metrics.score(frame["answer"].tolist(), predicted, labels, seed=0, resamples=200)
        assert {name: written[split][name] for name in scores} == scores


def test_a_second_run_gives_identical_bytes(evaluated, trained, splice, tmp_path):
    evaluate.evaluate(trained, splice, tmp_path / "eval", OPTIONS)
    for path in evaluated[0].iterdir():
        assert (tmp_path / "eval" / path.name).read_bytes() == path.read_bytes()


def test_the_command_fills_in_the_options_of_the_config(base, splice, tmp_path):
    words = ["evaluate", "--checkpoint", base, "--data", splice, "--output", tmp_path / "eval", "--options", "{}"]
    assert cli.main(list(map(str, words))) == 0
    scores = files.read_json(tmp_path / "eval" / "metrics.json")
    assert "ece" in scores["id"]  # calibration is on by default
    assert "pass@1" not in scores["id"]


def test_an_untrained_base_is_scored_with_nothing_well_formed(base, splice, tmp_path):
    scores = evaluate.evaluate(base, splice, tmp_path / "eval", OPTIONS | {"max_new_tokens": 4})
    for split in ("id", "ood"):
        assert scores[split]["well_formed"]["value"] == scores[split]["accuracy"]["value"] == 0.0
        assert pd.read_parquet(tmp_path / "eval" / f"{split}.parquet")["predicted"].isna().all()


SAMPLED = OPTIONS | {"do_sample": True, "temperature": 1.5}


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def sampled(trained, splice, tmp_path_factory):
    """What an undisturbed evaluation with sampling publishes."""
    output = tmp_path_factory.mktemp("sampled") / "eval"
    evaluate.evaluate(trained, splice, output, SAMPLED)
    return contents(output)


@pytest.fixture
def generated(monkeypatch):
    """The batches that are generated; the sixth kills the evaluation: 4 of id are kept, and 1 of ood."""
    found = []
    original = Qwen3ForCausalLM.generate

    def generate(self, input_ids, **options):
        found.append(len(input_ids))
        if len(found) == 6:
            raise Killed
        return original(self, input_ids=input_ids, **options)

    monkeypatch.setattr(Qwen3ForCausalLM, "generate", generate)
    return found


@pytest.fixture
def killed(trained, splice, tmp_path, generated):
    """The work folder of an evaluation that was killed."""
    with pytest.raises(Killed):
        evaluate.evaluate(trained, splice, tmp_path / "eval", SAMPLED, work=tmp_path / ".work")
    assert generated == [7, 7, 7, 3, 7, 7]
    assert not (tmp_path / "eval").exists()
    return tmp_path / ".work"


def test_killed_evaluation_goes_on_after_its_last_batch_to_the_same_bytes(
    trained, splice, killed, generated, sampled, tmp_path
):
    evaluate.evaluate(trained, splice, tmp_path / "eval", SAMPLED, work=killed)
    assert generated[6:] == [7, 7, 3]
    assert contents(tmp_path / "eval") == sampled
    assert names(tmp_path) == [".work", "eval"]


def test_batch_that_was_half_written_is_answered_again(trained, splice, killed, generated, sampled, tmp_path):
    """As a machine that lost power may leave it."""
    path = killed / "id" / "000001.json"
    path.write_bytes(path.read_bytes()[:40])
    (killed / "id" / "000002.json").write_bytes(b"")
    evaluate.evaluate(trained, splice, tmp_path / "eval", SAMPLED, work=killed)
    assert generated[6:] == [7, 7, 7, 7, 3]
    assert contents(tmp_path / "eval") == sampled


@pytest.mark.parametrize("death", ["in the second sample of id", "while labels of ood are scored"])
def test_killed_evaluation_in_depth_goes_on_to_the_same_bytes(trained, splice, deep, tmp_path, monkeypatch, death):
    """Batches a split: 4 answers, 1 of labels, 2 x 4 samples."""
    calls = {"generate": 0, "forward": 0}
    originals = {name: getattr(Qwen3ForCausalLM, name) for name in calls}
    inside = []  # generation also calls forward

    def generate(self, **options):
        calls["generate"] += 1
        if death.endswith("of id") and calls["generate"] == 10:
            raise Killed
        inside.append(True)
        answer = originals["generate"](self, **options)
        inside.pop()
        return answer

    def forward(self, *given, **options):
        if not inside:
            calls["forward"] += 1
            if death.endswith("are scored") and calls["generate"] == 16:
                raise Killed
        return originals["forward"](self, *given, **options)

    monkeypatch.setattr(Qwen3ForCausalLM, "generate", generate)
    monkeypatch.setattr(Qwen3ForCausalLM, "forward", forward)
    with pytest.raises(Killed):
        evaluate.evaluate(trained, splice, tmp_path / "eval", DEEP, work=tmp_path / ".work")
    assert not (tmp_path / "eval").exists()
    kept = {path.name for path in (tmp_path / ".work").iterdir()}
    assert {"id", "id-labels", "id-sample-0001", "id-sample-0002"} <= kept
    assert ("ood" in kept) == death.endswith("are scored")
    before, death = calls["generate"], ""
    evaluate.evaluate(trained, splice, tmp_path / "eval", DEEP, work=tmp_path / ".work")
    assert contents(tmp_path / "eval") == contents(deep[0])
    assert calls["generate"] - before == {10: 24 - 9, 16: 24 - 16}[before]


def test_what_is_asked_for_later_is_added_to_the_answers_that_are_kept(trained, splice, deep, tmp_path, monkeypatch):
    work, found = tmp_path / ".work", []
    evaluate.evaluate(trained, splice, tmp_path / "eval", DEEP | {"samples": 0, "calibration": False}, work=work)
    original = Qwen3ForCausalLM.generate

    def generate(self, **options):
        found.append(options["do_sample"])
        return original(self, **options)

    monkeypatch.setattr(Qwen3ForCausalLM, "generate", generate)
    evaluate.evaluate(trained, splice, tmp_path / "eval", DEEP, work=work)
    assert found == [True] * 16
    assert contents(tmp_path / "eval") == contents(deep[0])


@pytest.mark.parametrize("changed", ["checkpoint", "data", "options"])
def test_answers_of_another_evaluation_are_discarded_and_the_log_says_why(
    base, trained, splice, killed, generated, tmp_path, capsys, changed
):
    options, data, folder = SAMPLED, splice, trained
    if changed == "checkpoint":
        folder = base
    elif changed == "options":
        options = SAMPLED | {"temperature": 1.0}
    else:
        data = tmp_path / "data"
        with contextlib.chdir(ROOT):
            prepare("splice-donor", SIZES, 1, data)
    capsys.readouterr()
    evaluate.evaluate(folder, data, tmp_path / "eval", options, work=killed)
    said = capsys.readouterr().out
    assert f"from the start: the state in {killed} is of another run ({changed} changed)" in said
    assert "batches are done already" not in said
    assert len(generated) == 6 + 8
    evaluate.evaluate(folder, data, tmp_path / "undisturbed", options)
    assert contents(tmp_path / "eval") == contents(tmp_path / "undisturbed")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def taught(parent, data, output, task="splice-donor"):
    """A checkpoint that says that it was trained on the train split of `data`, and of which task that is."""
    model = models.compose(parent)

    def save(folder):
        model.save_pretrained(folder)
        files.write_json(folder / "inputs.json", {"task": task, "encoder": None})

    return publish(parent, output, save, train=files.sha256(data / "train.parquet"))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The same task drawn with another seed: its train split holds examples of the id split of `splice`."""
    folder = tmp_path_factory.mktemp("other") / "data"
    with contextlib.chdir(ROOT):
        prepare("splice-donor", SIZES, 1, folder)
    return folder


@pytest.mark.parametrize("generations", [1, 2])
def test_checkpoint_of_a_lineage_that_saw_other_splits_of_the_task_is_refused(
    base, splice, other, tmp_path, generations
):
    first = taught(base, other, tmp_path / "first" / "checkpoint")
    last = taught(first, splice, tmp_path / "second" / "checkpoint") if generations == 2 else first
    message = rf"{first}: trained on another train.parquet of splice-donor \(SHA-256 \w{{12}}\) than .* delete {first}"
    with pytest.raises(UserError, match=message):
        evaluate.evaluate(last, splice, tmp_path / "eval", OPTIONS, work=tmp_path / ".work")
    assert names(tmp_path) == ["first", "second"][:generations]
    evaluate.evaluate(first, other, tmp_path / "eval", OPTIONS | {"max_new_tokens": 1})


def test_checkpoint_that_saw_another_task_is_no_reason_to_refuse(base, splice, other, tmp_path):
    folder = taught(base, other, tmp_path / "checkpoint", task="hairpin")
    evaluate.evaluate(folder, splice, tmp_path / "eval", OPTIONS | {"max_new_tokens": 1})
    assert (tmp_path / "eval" / "metrics.json").is_file()


def test_split_that_was_changed_is_refused(base, splice, tmp_path):
    data = shutil.copytree(splice, tmp_path / "data")
    pd.read_parquet(data / "ood.parquet")[::-1].to_parquet(data / "ood.parquet")
    with pytest.raises(UserError, match=rf"{data}/ood\.parquet: its SHA-256 .* changed after it was written"):
        evaluate.evaluate(base, data, tmp_path / "eval", OPTIONS)
    assert names(tmp_path) == ["data"]


def test_samples_and_calibration_change_no_answer_and_no_metric_that_was_there(evaluated, deep):
    for split in ("id", "ood"):
        frame, more = (pd.read_parquet(folder / f"{split}.parquet") for folder, _ in (evaluated, deep))
        pd.testing.assert_frame_equal(more[frame.columns], frame)
        assert list(more.columns) == [
            *frame.columns,
            "confidence",
            "sampled",
            *(f"probability:{name}" for name in LABELS),
        ]
        assert evaluated[1][split].items() <= deep[1][split].items()
        for group, summaries in evaluated[1]["groups"][split].items():
            assert summaries.items() <= deep[1]["groups"][split][group].items()
    assert files.read_json(deep[0] / "metrics.json") == deep[1]


def test_ranking_metrics_are_those_of_the_probabilities_that_are_kept(deep, splice):
    labels = files.read_json(splice / "card.json")["labels"]
    columns = [f"probability:{label}" for label in labels]
    for split in ("id", "ood"):
        found = pd.read_parquet(deep[0] / f"{split}.parquet")
        assert list(found.columns[-2:]) == columns
        known = found[found[columns[0]].notna()]
        assert len(known) > 0
        np.testing.assert_allclose(known[columns].sum(axis=1), 1, rtol=1e-6)
        answered = known[known["well_formed"]]
        of_answer = [row[f"probability:{row['predicted']}"] for _, row in answered.iterrows()]
        np.testing.assert_allclose(answered["confidence"], of_answer, rtol=1e-6)
        given = found[columns].fillna(1 / 2)
        truth = found["answer"] == labels[0]
        expected = {
            "auroc": roc_auc_score(truth, given[columns[0]]),
            "auprc": np.mean(
                [average_precision_score(found["answer"] == label, given[f"probability:{label}"]) for label in labels]
            ),
        }
        for name, value in expected.items():
            assert deep[1][split][name]["value"] == pytest.approx(value, abs=1e-6)
            assert deep[1][split][name]["n"] == len(found)


def test_groups_are_ranked_among_themselves(tmp_path):
    rows = pd.DataFrame(
        {
            "answer": ["a", "b"] * 5 + ["a"] * 5,
            "predicted": ["a"] * 15,
            "group": ["both"] * 10 + ["one"] * 5,
            "probability:a": np.linspace(1, 0, 15),
            "probability:b": np.linspace(0, 1, 15),
        }
    )
    found = scores.of_groups(rows, Labels(("a", "b")), 0, 50)
    truth, given = rows["answer"][:10] == "a", rows["probability:a"][:10]
    assert found["both"]["auroc"]["value"] == pytest.approx(roc_auc_score(truth, given))
    assert found["one"]["auroc"] == {"value": None, "low": None, "high": None, "n": 0}


def test_accuracy_at_k_is_that_of_the_sampled_answers_that_are_kept(deep):
    for split in ("id", "ood"):
        found = pd.read_parquet(deep[0] / f"{split}.parquet")
        assert {len(answers) for answers in found["sampled"]} == {2}
        given = [[vote == row.answer for vote in row.sampled] for row in found.itertuples()]
        assert deep[1][split]["pass@1"]["value"] == pytest.approx(np.mean(given))
        assert deep[1][split]["pass@2"]["value"] == pytest.approx(np.mean([any(row) for row in given]))
        assert "pass@4" not in deep[1][split]
        first, second = zip(*found["sampled"], strict=True)
        assert first != second
        assert list(first) != found["predicted"].tolist()


def outputs(*texts, finished=True):
    return pd.DataFrame(
        {"output": texts, "finished": finished, "well_formed": [answers.parse(t, LABELS) is not None for t in texts]}
    ).assign(repeated=False)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("<think></think>", "empty"),
        ("<think>It is spliced.</think> \n", "empty"),
        ("<think>It is spliced.</think>Answer: ", "empty"),
        ("<think>It is spliced.</think>Answer:", "empty"),
        ("<think>It is spliced.</think>spliced", "off_format"),
        ("<think>It is.</think>Answer: spliced or skipped", "off_format"),
        ("Answer: spliced", "off_format"),
        ("spliced", "off_format"),
        ("<think></think>Answer: spliced", None),
    ],
)
def test_finished_outputs_are_well_formed_empty_or_off_format(text, kind):
    found = {name: flags.tolist() for name, flags in evaluate.degenerate(outputs(text)).items()}
    assert found == {name: [name == kind] for name in ("unfinished", "empty", "off_format", "repeated")}
    cut = evaluate.degenerate(outputs(text, finished=False).assign(well_formed=False))
    assert {name for name, flags in cut.items() if flags.any()} == {"unfinished"}


def test_shares_of_malformed_outputs_are_those_of_unfinished_empty_and_off_format_ones(deep, base, splice, tmp_path):
    scores = evaluate.evaluate(base, splice, tmp_path / "eval", OPTIONS | {"max_new_tokens": 4})
    for split in ("id", "ood"):
        assert scores[split]["unfinished"]["value"] > 0.9
        for given in (scores[split], deep[1][split]):
            shares = [given[name]["value"] for name in ("well_formed", "unfinished", "empty", "off_format")]
            assert sum(shares) == pytest.approx(1)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([], False),
        ([1, 2, 3], False),
        (list(range(100)), False),
        ([7] * 6, True),  # 3 stretches of four, one of them new
        ([7] * 5, False),  # 2 stretches, one new: just half
        ([1, 2, 3] * 5, True),
        ([*range(100), *[1, 2, 3] * 20], False),  # a loop at the end of a longer text that has none
        ([*range(20), *[1, 2, 3] * 20], True),
        ([*range(50), *range(50)], False),  # said twice is not yet a loop
    ],
)
def test_output_repeats_itself_if_more_than_half_of_its_stretches_are_repetitions(ids, expected):
    assert generate.repeats(ids) is expected
    stretches = [tuple(ids[at : at + 4]) for at in range(len(ids) - 3)]
    again = sum(stretch in stretches[:at] for at, stretch in enumerate(stretches))
    assert expected == (again > len(stretches) / 2)


def test_gold_reasoning_of_the_tasks_does_not_count_as_repetition(base, splice):
    tokens = tokenization.load(base)
    frame = pd.read_parquet(splice / "train.parquet")
    texts = [answers.completion(row.reasoning, row.answer) for row in frame.itertuples()]
    assert not any(map(generate.repeats, tokens(texts, add_special_tokens=False)["input_ids"]))


def test_small_groups_are_one():
    assert scores.pooled(["x"] * 5 + ["y"] * 4 + ["z"]) == ["x"] * 5 + ["other"] * 5
    assert scores.pooled(["other"] * 5 + ["y"] * 4) == ["other"] * 5 + ["other (pooled)"] * 4


def test_groups_have_the_metrics_of_their_examples(trained, splice, tmp_path):
    """Groups of 12, 9 and three of one; the last three are one."""
    data = shutil.copytree(splice, tmp_path / "data")
    frame = pd.read_parquet(data / "ood.parquet")
    frame["group"] = ["north"] * 12 + ["south"] * 9 + ["x", "y", "z"]
    frame.to_parquet(data / "ood.parquet", index=False)
    card = files.read_json(data / "card.json")
    card["files"]["ood.parquet"] = files.sha256(data / "ood.parquet")
    files.write_json(data / "card.json", card)
    scores = evaluate.evaluate(trained, data, tmp_path / "eval", OPTIONS)
    assert files.read_json(tmp_path / "eval" / "metrics.json")["groups"] == scores["groups"]
    found = pd.read_parquet(tmp_path / "eval" / "ood.parquet").assign(
        group=["north"] * 12 + ["south"] * 9 + ["other"] * 3
    )
    assert set(scores["groups"]["ood"]) == {"north", "south", "other"}
    for name, mine in found.groupby("group"):
        predicted = [value if isinstance(value, str) else None for value in mine["predicted"]]
        expected = metrics.score(mine["answer"].tolist(), predicted, card["labels"], resamples=200)
        summaries = scores["groups"]["ood"][name]
        assert summaries == {key: expected[key] for key in ("accuracy", "balanced_accuracy")}
        assert summaries["accuracy"]["n"] == len(mine)


def test_sets_of_terms_have_their_own_metrics_and_equal_meaning_counts_at_k(base, splice, tmp_path, monkeypatch):
    """The model is one that writes what is planned here: the gold set, the same in other words, another, nothing."""
    data = shutil.copytree(splice, tmp_path / "data")
    (tmp_path / "go.obo").write_text(OBO)
    terms = gene_ontology.read(tmp_path / "go.obo")
    terms.write(data / gene_ontology.FILE)
    card = files.read_json(data / "card.json") | {"labels": []}
    card["answers"] = {"kind": "terms", "sha256": files.sha256(data / gene_ontology.FILE)}
    for split in ("id", "ood"):
        pd.read_parquet(data / f"{split}.parquet").assign(answer="GO:0000004").to_parquet(data / f"{split}.parquet")
        card["files"][f"{split}.parquet"] = files.sha256(data / f"{split}.parquet")
    files.write_json(data / "card.json", card)
    said = {0: "GO:0000004", 1: "GO:0000002, GO:0000004", 2: "GO:0000003"}  # GO:0000004 implies GO:0000002

    def written(loaded, prompts, options, saved, on_batch, sample=0):
        texts = [f"<think>a</think>Answer: {said[sample]}<|endoftext|>"] * len(prompts)
        texts[0] = "<think>a</think><|endoftext|>"
        if not sample:
            texts[1] = f"Answer:\n- {said[0]} (transfer)<|endoftext|>"
        return loaded.tokenizer(texts, add_special_tokens=False)["input_ids"]

    monkeypatch.setattr(generate, "generate", written)
    scores = evaluate.evaluate(base, data, tmp_path / "eval", DEEP)
    for split in ("id", "ood"):
        found = pd.read_parquet(tmp_path / "eval" / f"{split}.parquet")
        assert "confidence" not in found
        assert found["predicted"].isna().tolist() == [True, True] + [False] * (SIZES[split] - 2)
        assert found["predicted_lenient"].isna().tolist() == [True] + [False] * (SIZES[split] - 1)
        assert list(found["sampled"][1]) == ["GO:0000002, GO:0000004", "GO:0000003"]
        predicted = [value if isinstance(value, str) else None for value in found["predicted"]]
        expected = answers.Terms(terms).score(found["answer"].tolist(), predicted, resamples=200)
        assert {name: scores[split][name] for name in expected} == expected
        found_by_any = [value if isinstance(value, str) else None for value in found["predicted_lenient"]]
        loose = answers.Terms(terms).score(found["answer"].tolist(), found_by_any, resamples=200)
        assert scores[split]["f1_micro_lenient"] == loose["f1_micro"] != expected["f1_micro"]
        assert scores[split]["accuracy_lenient"] == loose["accuracy"]
        share = (SIZES[split] - 1) / SIZES[split]
        assert scores[split]["pass@1"]["value"] == pytest.approx(share / 2)
        assert scores[split]["pass@2"]["value"] == pytest.approx(share)
        assert scores[split]["empty"]["value"] == pytest.approx(1 / SIZES[split])
        assert "ece" not in scores[split]
        (group,) = scores["groups"][split].values()
        assert group == {name: expected[name] for name in ("accuracy", "f1_micro")}


def test_evaluating_a_checkpoint_that_was_touched_is_refused_and_leaves_nothing(base, splice, tmp_path):
    broken = shutil.copytree(base, tmp_path / "checkpoint")
    (broken / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"checkpoint/config\.json"):
        evaluate.evaluate(broken, splice, tmp_path / "out" / "eval", OPTIONS)
    assert not (tmp_path / "out").exists()


def test_vllm_gives_the_answers_of_transformers_and_is_recorded(splice, tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed: make vllm")
    models.make_base(backbone(head_dim=32, initializer_range=0.3), tmp_path / "base")
    options = {"max_new_tokens": 16, "batch_size": 7, "bootstrap": 20, "samples": 1, "calibration": True}
    tables = {}
    for name in ("transformers", "vllm"):
        work, output = tmp_path / f"work-{name}", tmp_path / name
        evaluate.evaluate(tmp_path / "base", splice, output, options | {"engine": name}, work=work)
        tables[name] = pd.read_parquet(output / "ood.parquet")
    pd.testing.assert_frame_equal(*(table.drop(columns="sampled") for table in tables.values()))
    assert tables["vllm"]["output"].nunique() > 5
    assert not (tmp_path / "transformers" / evaluate.ENGINE).exists()
    recorded = files.read_json(tmp_path / "vllm" / evaluate.ENGINE)
    assert recorded == {"name": "vllm", "version": "0.32.0", "dtype": "float32", "update_kept": 1.0}
    assert files.read_json(tmp_path / "work-vllm" / "fingerprint.json")["packages"]["vllm"] == "0.32.0"


def test_vllm_that_is_not_installed_is_refused_before_anything_is_done(base, splice, tmp_path, monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(engines, "version", absent)
    with pytest.raises(UserError, match="engine: vllm is not installed; run `make vllm`"):
        evaluate.evaluate(base, splice, tmp_path / "eval", OPTIONS | {"engine": "vllm"}, work=tmp_path / "work")
    assert list(tmp_path.iterdir()) == []
