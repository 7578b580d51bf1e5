"""Evaluation: every example once, independent of how it was batched, and metrics that are those of the predictions."""

import contextlib
import itertools
import math
import random
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import Qwen3ForCausalLM

from cisterna import answers, corpus, evaluate, files, metrics, models, tokenizer
from cisterna.corpus import Blocks
from cisterna.data import prepare
from cisterna.errors import UserError
from tiny import ROOT, SIZES, publish

OPTIONS = {"max_new_tokens": 40, "batch_size": 7, "bootstrap": 200}
STEPS = 60
CPU = torch.device("cpu")
LABELS = ["spliced", "skipped"]


@pytest.fixture(scope="module")
def trained(base, splice, tmp_path_factory):
    """A checkpoint that mostly, but not always, writes what can be parsed: the base after a few steps on the answers.

    Trained here by a plain loop, so that these tests depend on no trainer. Without it all outputs would be malformed.
    """
    tokens, model = tokenizer.load(base), models.compose(base).train()
    frame = pd.read_parquet(splice / "train.parquet")
    rows = []
    for prompt, answer in zip(frame["prompt"], frame["answer"], strict=True):
        start = tokens(tokenizer.expand(prompt), add_special_tokens=False)["input_ids"]
        text = answers.completion(prompt[-12:-7], answer) + tokens.eos_token
        end = tokens(text, add_special_tokens=False)["input_ids"]
        rows.append((start, end))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    width = max(len(start) + len(end) for start, end in rows)
    ids = torch.tensor([start + end + [tokens.pad_token_id] * (width - len(start) - len(end)) for start, end in rows])
    labels = torch.tensor([[-100] * len(a) + b + [-100] * (width - len(a) - len(b)) for a, b in rows])
    for _ in range(STEPS):
        loss = model(ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("trained") / "checkpoint"
    return publish(base, folder, model.eval().save_pretrained)


@pytest.fixture(scope="module")
def evaluated(trained, splice, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluated") / "eval"
    return output, evaluate.evaluate(trained, splice, output, OPTIONS)


@pytest.fixture(scope="module")
def prompts(splice):
    """Prompts of very different lengths, in no order of length."""
    frame = pd.concat([pd.read_parquet(splice / f"{split}.parquet") for split in ("id", "ood")])
    found = [prompt[-(10 + 7 * (at % 9)) :] if at % 3 else prompt for at, prompt in enumerate(frame["prompt"])]
    return [
        prompt if prompt.count("<rna>") == prompt.count("</rna>") else prompt.replace("rna>", "") for prompt in found
    ]


def ask(model, tokens, prompts, options):
    frame = pd.DataFrame({"prompt": prompts, "segments": [[]] * len(prompts)})
    return evaluate.answer(model, tokens, frame, LABELS, options, CPU, evaluate.TOKENS)


def test_predictions_do_not_depend_on_batch_size_or_order(trained, prompts):
    model, tokens = models.compose(trained), tokenizer.load(models.base_of(trained))
    assert len({len(prompt) for prompt in prompts}) > 5

    def predict(texts, size):
        return ask(model, tokens, texts, OPTIONS | {"batch_size": size})

    alone = predict(prompts, 1)
    assert alone["finished"].any()
    for size in (3, 200):
        pd.testing.assert_frame_equal(predict(prompts, size), alone)
    order = random.Random(3).sample(range(len(prompts)), len(prompts))
    shuffled = predict([prompts[at] for at in order], 5)
    pd.testing.assert_frame_equal(shuffled, alone.iloc[order].reset_index(drop=True))


def test_every_example_is_there_once_with_its_gold_answer(evaluated, splice):
    for split in ("id", "ood"):
        given = pd.read_parquet(splice / f"{split}.parquet")
        found = pd.read_parquet(evaluated[0] / f"{split}.parquet")
        assert len(found) == SIZES[split]
        pd.testing.assert_frame_equal(found[["id", "prompt", "answer"]], given[["id", "prompt", "answer"]])
    assert sorted(path.name for path in evaluated[0].iterdir()) == ["id.parquet", "metrics.json", "ood.parquet"]


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
        assert metrics.score(frame["answer"].tolist(), predicted, labels, seed=0, resamples=200) == written[split]


def test_a_second_run_gives_identical_bytes(evaluated, trained, splice, tmp_path):
    evaluate.evaluate(trained, splice, tmp_path / "eval", OPTIONS)
    for path in evaluated[0].iterdir():
        assert (tmp_path / "eval" / path.name).read_bytes() == path.read_bytes()


def test_an_output_that_was_cut_is_never_well_formed(trained, prompts):
    model, tokens = models.compose(trained), tokenizer.load(models.base_of(trained))
    whole = ask(model, tokens, prompts, OPTIONS)
    chosen = whole[whole["well_formed"]].iloc[0]
    for length in range(1, int(chosen["tokens"]) + 1):
        options = OPTIONS | {"max_new_tokens": length}
        cut = ask(model, tokens, [prompts[chosen.name]], options).iloc[0]
        assert cut["finished"] == cut["well_formed"] == (length == chosen["tokens"])
        assert cut["tokens"] == length
        assert (cut["predicted"] == chosen["predicted"]) == (length == chosen["tokens"])
    # One token short, the text already reads as an answer; only the end-of-text token is missing.
    options = OPTIONS | {"max_new_tokens": int(chosen["tokens"]) - 1}
    cut = ask(model, tokens, [prompts[chosen.name]], options).iloc[0]
    assert answers.parse(cut["output"], LABELS) == chosen["predicted"]


def test_an_untrained_base_is_scored_with_nothing_well_formed(base, splice, tmp_path):
    scores = evaluate.evaluate(base, splice, tmp_path / "eval", OPTIONS | {"max_new_tokens": 4})
    for split in ("id", "ood"):
        assert scores[split]["well_formed"]["value"] == scores[split]["accuracy"]["value"] == 0.0
        assert pd.read_parquet(tmp_path / "eval" / f"{split}.parquet")["predicted"].isna().all()


def test_sampling_depends_on_the_seed_alone(trained, prompts):
    model, tokens = models.compose(trained), tokenizer.load(models.base_of(trained))

    def sample(seed):
        options = OPTIONS | {"do_sample": True, "temperature": 1.5, "seed": seed}
        return ask(model, tokens, prompts[:8], options)

    first, second, other = sample(0), sample(0), sample(1)
    pd.testing.assert_frame_equal(first, second)
    assert not first["output"].equals(other["output"])


def test_what_is_sampled_depends_on_the_number_of_the_batch(trained, prompts):
    """Two batches of the same prompts are not the same draws."""
    model, tokens = models.compose(trained), tokenizer.load(models.base_of(trained))
    options = OPTIONS | {"do_sample": True, "temperature": 1.5, "batch_size": 4}
    found = ask(model, tokens, prompts[:1] * 8, options)["output"].tolist()
    assert found[:4] != found[4:]


# --- An evaluation that is killed ---


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


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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
    assert "batches are there" not in said
    assert len(generated) == 6 + 8
    evaluate.evaluate(folder, data, tmp_path / "undisturbed", options)
    assert contents(tmp_path / "eval") == contents(tmp_path / "undisturbed")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- A checkpoint that saw other data ---


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


# --- What an answer is ---


def test_letters_of_residue_tokens_are_not_an_answer(base):
    """The residue A is not the text A, also where A is a label."""
    tokens = tokenizer.load(base)
    outputs = ["<think></think>Answer: A", "<think></think>Answer: <|rna:A|>", "<think></think>Answer: <rna>A</rna>"]

    class Model:
        """It writes the outputs above, one a prompt."""

        def get_input_embeddings(self):
            return torch.nn.Embedding(1, 1)

        def generate(self, input_ids, **options):
            rows = tokens([text + tokens.eos_token for text in outputs], add_special_tokens=False, padding=True)
            return torch.cat([input_ids, torch.tensor(rows["input_ids"]).roll(0)], dim=1)

    tokens.padding_side = "right"
    frame = pd.DataFrame({"prompt": ["?"] * 3, "segments": [[]] * 3})
    found = evaluate.answer(Model(), tokens, frame, ["A", "U"], OPTIONS, CPU, evaluate.TOKENS)
    assert [value if isinstance(value, str) else None for value in found["predicted"]] == ["A", None, None]


# Perplexity


@pytest.fixture(scope="module")
def dna(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    draw = random.Random(2)
    records = (f">{at}\n{''.join(draw.choices('ACGT', k=draw.randint(10, 50)))}\n" for at in range(400))
    (folder / "dna.fasta").write_text("".join(records))
    corpus.tokenize(folder / "dna.fasta", "dna", base, folder / "dna")
    return folder / "dna"


def test_a_model_that_knows_nothing_has_the_vocabularys_size_as_perplexity(base, dna, tmp_path):
    model = models.compose(base)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    blind = publish(base, tmp_path / "blind", model.save_pretrained)
    found = evaluate.perplexity(blind, [dna], tmp_path / "perplexity.json", 64)["dna"]
    vocabulary = len(tokenizer.load(base))
    assert found["value"] == pytest.approx(vocabulary, rel=1e-5)
    assert found["low"] == pytest.approx(vocabulary, rel=1e-5)
    assert found["high"] == pytest.approx(vocabulary, rel=1e-5)


def test_perplexity_is_of_each_document_by_itself(base, dna, tmp_path):
    model, blocks = models.compose(base), Blocks(dna, 64, part="heldout")
    total, count = 0.0, 0
    for index in range(len(blocks)):
        ids = torch.from_numpy(blocks[index]["input_ids"])
        bounds = [*np.flatnonzero(blocks[index]["position_ids"] == 0).tolist(), 64]
        for begin, end in itertools.pairwise(bounds):
            with torch.inference_mode():
                logits = model(ids[None, begin:end]).logits[0, :-1]
            total += torch.nn.functional.cross_entropy(logits, ids[begin + 1 : end], reduction="sum").item()
            count += end - begin - 1
    found = evaluate.perplexity(base, [dna], tmp_path / "perplexity.json", 64)["dna"]
    assert found["n"] == count
    assert found["value"] == pytest.approx(math.exp(total / count), rel=1e-6)
    assert found["low"] < found["value"] < found["high"]
    assert files.read_json(tmp_path / "perplexity.json") == {"dna": found}


def test_evaluating_a_checkpoint_that_was_touched_is_refused_and_leaves_nothing(base, splice, tmp_path):
    broken = shutil.copytree(base, tmp_path / "checkpoint")
    (broken / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"checkpoint/config\.json"):
        evaluate.evaluate(broken, splice, tmp_path / "out" / "eval", OPTIONS)
    assert not (tmp_path / "out").exists()
