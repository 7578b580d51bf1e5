"""`cisterna predict`: a checkpoint asked about sequences that are in no data set and no bank."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from cisterna import cli, models
from cisterna.artifacts import files
from cisterna.constants import SPLITS
from cisterna.data import splits
from cisterna.errors import UserError
from cisterna.evaluation import evaluate
from cisterna.evaluation.predict import _sources
from cisterna.scoring import answers
from cisterna.sequences import feature_bank, tokenization
from cisterna.sequences.source import TOKENS, LiveEncoder
from cisterna.tasks import tables
from runs import SOLVE, Run
from tiny import READING, ROOT, SIZES, backbone, encoder, publish

OPTIONS = {"max_new_tokens": 56, "batch_size": 24, "bootstrap": 100}
COLUMNS = ["id", "sequence", "prompt", "output", "predicted", "well_formed", "tokens", "finished"]
NEW = ["ACGGUACGU", "CAGGUAAGU", "UUUGCCCCC", "cagguaagu"]


@pytest.fixture(scope="module")
def models_(solved, featured):
    """A model of splice-donor in either form."""
    return {"tokens": solved.output, "features": featured.output}


def predict(folder, table, output, code=0, more=()):
    words = ["predict", str(folder), "--input", str(table), "--output", str(output), "--options", json.dumps(OPTIONS)]
    assert cli.main([*words, *more]) == code
    if output.suffix != ".parquet":
        return None
    return pd.read_parquet(output) if code == 0 else None


def unseen(splice, bank):
    known = {text for split in SPLITS for text in pd.read_parquet(splice / f"{split}.parquet")["sequence"]}
    opened = feature_bank.Bank(bank)
    for sequence in NEW:
        assert sequence.upper() not in known
        with pytest.raises(UserError, match="no features of"):
            opened.locate(sequence.upper())


@pytest.mark.parametrize("form", ["tokens", "features"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl"])
def test_new_sequences_are_answered(models_, splice, bank, tmp_path, form, suffix):
    unseen(splice, bank)
    frame, path = (
        pd.DataFrame({"sequence": NEW, "id": [f"n{number}" for number in range(4)]}),
        tmp_path / f"new{suffix}",
    )
    if suffix == ".parquet":
        frame.to_parquet(path)
    elif suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    found = predict(models_[form], path, tmp_path / "deep" / "answers.parquet")
    assert list(found.columns) == COLUMNS
    assert list(found["id"]) == list(frame["id"])
    assert list(found["sequence"]) == [sequence.upper() for sequence in NEW]
    assert found["well_formed"].any()
    for row in found.itertuples():
        assert row.prompt.count("<rna>") == 2
        expected = answers.parse(row.output, ["spliced", "skipped"]) if row.finished else None
        assert (row.predicted if isinstance(row.predicted, str) else None) == expected
    assert found["output"][1] == found["output"][3]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["answers.parquet"]


@pytest.mark.parametrize("form", ["tokens", "features"])
def test_a_known_sequence_is_answered_as_in_evaluation(models_, splice, bank, tmp_path, form):
    evaluate.evaluate(models_[form], splice, tmp_path / "eval", OPTIONS, bank)
    given = pd.read_parquet(splice / "id.parquet")[["id", "sequence"]]
    given.to_csv(tmp_path / "known.csv", index=False)
    found = predict(models_[form], tmp_path / "known.csv", tmp_path / "known.parquet")
    expected = pd.read_parquet(tmp_path / "eval" / "id.parquet")
    assert list(found["prompt"]) == list(expected["prompt"])
    # Greedy text may flip where two tokens are within the rounding of live features: allow one of 24.
    assert (found["output"] != expected["output"]).sum() <= (0 if form == "tokens" else 1)


def test_probabilities_of_the_labels_are_those_of_evaluation(models_, splice, tmp_path):
    folder = models_["tokens"]
    evaluate.evaluate(folder, splice, tmp_path / "eval", OPTIONS | {"calibration": True})
    pd.read_parquet(splice / "id.parquet")[["id", "sequence"]].to_csv(tmp_path / "known.csv", index=False)
    found = predict(folder, tmp_path / "known.csv", tmp_path / "known.parquet", more=["--probabilities"])
    columns = [f"probability:{label}" for label in files.read_json(splice / "card.json")["labels"]]
    assert list(found.columns) == COLUMNS + columns
    expected = pd.read_parquet(tmp_path / "eval" / "id.parquet")
    pd.testing.assert_frame_equal(found[columns], expected[columns])
    assert found[columns[0]].notna().any()


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_columns_are_those_asked_for_in_their_order(models_, splice, tmp_path, suffix):
    pd.DataFrame({"sequence": NEW, "id": list("abcd")}).to_csv(tmp_path / "new.csv", index=False)
    second, first = files.read_json(splice / "card.json")["labels"]
    output = tmp_path / f"answers{suffix}"
    whole = predict(models_["tokens"], tmp_path / "new.csv", tmp_path / "all.parquet", more=["--probabilities"])
    predict(models_["tokens"], tmp_path / "new.csv", output, more=["--columns", "id", first, second, "answer"])
    found = tables.open_table(output)
    assert list(found.columns) == ["id", first, second, "answer"]
    assert list(found["id"]) == list("abcd")
    for label in (first, second):
        given = pd.to_numeric(found[label]).to_numpy(float)
        np.testing.assert_allclose(given, whole[f"probability:{label}"].to_numpy(float), rtol=1e-6)
    assert list(found["answer"].replace("", None)) == list(whole["predicted"])


@pytest.mark.parametrize(
    ("name", "columns", "named"),
    [
        ("answers.csv", ["id", "maybe"], ["'maybe'", "answer, spliced, skipped"]),
        ("answers.csv", ["id", "spliced", "id"], ["'id'", "twice"]),
        ("answers.xlsx", [], ["answers.xlsx", ".csv"]),
    ],
    ids="unknown twice ending".split(),
)
def test_columns_and_endings_that_there_are_not_are_refused(models_, tmp_path, capsys, name, columns, named):
    pd.DataFrame({"sequence": NEW}).to_csv(tmp_path / "new.csv", index=False)
    more = ["--columns", *columns] if columns else []
    predict(models_["tokens"], tmp_path / "new.csv", tmp_path / name, code=2, more=more)
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert all(part in error for part in named)
    assert not (tmp_path / name).exists()


def test_output_that_would_replace_the_input_is_refused(models_, tmp_path, capsys):
    table = tmp_path / "new.csv"
    table.write_text("sequence\nCAGGUAAGU\n")
    words = ["predict", str(models_["tokens"]), "--input", str(table), "--output", f"{tmp_path}/./new.csv"]
    assert cli.main(words) == 2
    assert "is one of the files that are read" in capsys.readouterr().err
    assert table.read_text() == "sequence\nCAGGUAAGU\n"


def test_label_that_is_also_the_name_of_a_column_is_ambiguous():
    with pytest.raises(UserError, match=r"'output' is a column and a label.*'probability:output'"):
        _sources(["output"], ["id", "output"], ["output", "input"])
    assert _sources(["probability:output", "input"], ["id", "output"], ["output", "input"]) == {
        "probability:output": "probability:output", "input": "probability:input",
    }  # fmt: skip


def test_rows_without_an_id_are_numbered(models_, tmp_path):
    pd.DataFrame({"sequence": NEW[:2], "note": ["a", "b"]}).to_csv(tmp_path / "new.csv", index=False)
    assert list(predict(models_["tokens"], tmp_path / "new.csv", tmp_path / "new.parquet")["id"]) == ["1", "2"]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("id,seq\na,CAGGUAAGU\n", ["'sequence'", "id, seq"]),
        ("id,sequence\na,CAGGUAAGU\nb,CAGGTAAGT\n", ["row 2", "'T'", "a base of DNA"]),
        ("id,sequence\na,CAGGUAAGU\nb,CAGG\n", ["row 2", "splice-donor", "9"]),
        ("id,sequence\na,<rna>CAG\n", ["row 1", "<rna>"]),
        ("id,sequence\na,<|endoftext|>\n", ["row 1", "'<|'"]),
        ("id,sequence\na,CAGGUAAGU\nb,\n", ["row 2", "'sequence'"]),
        ("id,sequence\n", []),
        (None, []),
    ],
    ids="column letter length tag token empty rows file".split(),
)
def test_table_that_cannot_be_asked_about_is_named(models_, tmp_path, capsys, content, named):
    if content is not None:
        (tmp_path / "new.csv").write_text(content)
    predict(models_["tokens"], tmp_path / "new.csv", tmp_path / "out" / "answers.parquet", code=2)
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert all(part in error for part in ["new.csv", *named])
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_checkpoint_that_was_not_trained_on_a_task_is_refused(base, tmp_path, capsys):
    (tmp_path / "new.csv").write_text("sequence\nCAGGUAAGU\n")
    predict(base, tmp_path / "new.csv", tmp_path / "answers.parquet", code=2)
    assert f"{base}: not trained on a task; expected a checkpoint of SFT or RL" in capsys.readouterr().err
    predict(tmp_path / "nowhere", tmp_path / "new.csv", tmp_path / "answers.parquet", code=2)
    assert "nowhere" in capsys.readouterr().err
    assert not (tmp_path / "answers.parquet").exists()


def test_encoder_that_is_gone_or_another_is_refused(base, splice, tmp_path, capsys):
    own = encoder(tmp_path / "encoders" / "own" / "checkpoint")
    feature_bank.build_for_task(own, splice, READING, tmp_path / "w", tmp_path / "bank")
    reads = {"sequences": "features", "bank": tmp_path / "bank"}
    made = Run("sft", base, splice, tmp_path / "m", SOLVE | {"fraction": 0.2}, 1, reads=reads).here()
    (tmp_path / "new.csv").write_text("sequence\nCAGGUAAGU\n")
    encoder(own, seed=1)
    capsys.readouterr()
    predict(made.output, tmp_path / "new.csv", tmp_path / "answers.parquet", code=2)
    assert "the model's bridge was trained on other features" in capsys.readouterr().err
    own.rename(own.with_name("elsewhere"))
    predict(made.output, tmp_path / "new.csv", tmp_path / "answers.parquet", code=2)
    assert f"{own}: not a checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["protein-fitness", "promoter-expression", "cell-type"])
def test_every_built_in_task_can_be_asked(base, tmp_path, monkeypatch, task):
    """By its prompt as in training, whatever the model answers."""
    monkeypatch.chdir(ROOT)
    splits.prepare(task, SIZES, 0, tmp_path / "data")
    made = Run("sft", base, tmp_path / "data", tmp_path / "m", SOLVE | {"fraction": 0.2}, 1).here()
    given = pd.read_parquet(tmp_path / "data" / "ood.parquet")[["id", "sequence", "prompt"]].head(3)
    if task == "cell-type":  # a longer sentence is cut as those of training were
        given.loc[0, "sequence"] += " ACTB MALAT1"
    given[["id", "sequence"]].to_csv(tmp_path / "new.csv", index=False)
    found = predict(made.output, tmp_path / "new.csv", tmp_path / "answers.parquet")
    assert list(found["prompt"]) == list(given["prompt"])


@pytest.fixture
def own(tmp_path):
    """A table of the user's own with positions, and what the config says of it."""
    lines = ["variant,seq,class,family,where"]
    for number in range(48):
        sequence = "ACGT"[number % 4] * 3 + "ACGTTGCA"[number % 8 :] + "ACGT"[number // 4 % 4] * (3 + number // 16)
        family = "out" if number % 4 == 3 else "in"
        lines.append(f"v{number},{sequence},{'ab'[number % 2]},{family},{1 + number % 5}")
    (tmp_path / "own.csv").write_text("\n".join(lines) + "\n")
    return {
        "file": str(tmp_path / "own.csv"), "modality": "dna", "labels": ["a", "b"], "question": "Which?",
        "columns": {"id": "variant", "sequence": "seq", "label": "class", "group": "family", "position": "where"},
        "ood": ["out"], "train": 12, "validation": 3, "id": 3,
    }  # fmt: skip


def test_own_table_is_asked_by_its_columns_and_with_its_positions(base, esm, own, tmp_path, capsys):
    splits.prepare("own", own, 0, tmp_path / "data")
    reading = READING | {"flank": 2}
    feature_bank.build_for_task(esm, tmp_path / "data", reading, tmp_path / "w", tmp_path / "bank")
    reads = {"sequences": "features", "bank": tmp_path / "bank"}
    made = Run("sft", base, tmp_path / "data", tmp_path / "m", SOLVE | {"fraction": 1.0}, 1, reads=reads).here()
    (tmp_path / "own.csv").unlink()  # nothing of it is needed any more
    (tmp_path / "new.csv").write_text("seq,where\nACCCGTTTAC,3\nacgtacgt,8\n")
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LiveEncoder, "locate", lambda self, text: asked.append(text) or (0, len(text)))
        with pytest.raises(IndexError):  # nothing was located, so nothing can be read
            predict(made.output, tmp_path / "new.csv", tmp_path / "answers.parquet")
    assert asked == ["ACCC", "CGT"]
    found = predict(made.output, tmp_path / "new.csv", tmp_path / "answers.parquet")
    assert list(found["sequence"]) == ["ACCCGTTTAC", "ACGTACGT"]
    assert '"lower_case": 1' in capsys.readouterr().out
    assert found["prompt"][0] == "Which?\n<dna>ACCCGTTTAC</dna>\nOptions: a, b\n"
    for where in ("0", "9", "x", "1.5"):
        (tmp_path / "new.csv").write_text(f"sequence,where\nACCCGTTTAC,3\nACGTACGT,{where}\n")
        capsys.readouterr()
        predict(made.output, tmp_path / "new.csv", tmp_path / "wrong.parquet", code=2)
        error = capsys.readouterr().err
        assert all(part in error for part in ("row 2", repr(where), "position", "from 1 to 8"))
    (tmp_path / "new.csv").write_text("seq\nACGT\n")
    predict(made.output, tmp_path / "new.csv", tmp_path / "wrong.parquet", code=2)
    assert "position" in capsys.readouterr().err
    (tmp_path / "new.csv").write_text("seq,where\nACGU,1\n")
    predict(made.output, tmp_path / "new.csv", tmp_path / "wrong.parquet", code=2)
    assert "letter 'U' at position 4 is not a letter of dna" in capsys.readouterr().err


def test_a_task_without_sequences_gives_the_file_that_a_challenge_asks_for(base, tmp_path):
    """Perturbed gene, measured gene, cell line: from the table to baselines, a model and its probabilities."""
    labels = ["up", "down", "none"]
    rows = [
        {"row": f"r{n}", "pert": f"P{n % 6}", "gene": f"G{n // 6}", "cell": "AB"[n % 2], "label": labels[n % 3]}
        for n in range(60)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "own.csv", index=False)
    spec = {
        "file": str(tmp_path / "own.csv"), "modality": "text", "labels": labels, "ood": ["B"],
        "columns": {"id": "row", "label": "label", "group": "cell"}, "prompt": "{pert} off: is {gene} {options}?",
        "train": 18, "validation": 6, "id": 6,
    }  # fmt: skip
    splits.prepare("own", spec, 0, tmp_path / "data")
    words = ["baselines", "--data", tmp_path / "data", "--options", '{"bootstrap": 20}', "--output", tmp_path / "b"]
    assert cli.main(list(map(str, words))) == 0
    assert files.read_json(tmp_path / "b" / "choices.json")["features"] == {"pert": "one-hot", "gene": "one-hot"}
    assert files.read_json(tmp_path / "b" / "metrics.json")["logistic"]["id"]["auroc"]["value"] == 1  # P decides
    made = Run("sft", base, tmp_path / "data", tmp_path / "m", SOLVE | {"fraction": 1.0}, 1).here()
    (tmp_path / "new.csv").write_text("row,pert,gene\nx,P1,NEW\ny,P2,G3\n")
    more = ["--columns", "id", *labels, "answer"]
    predict(made.output, tmp_path / "new.csv", tmp_path / "sent.csv", more=more)
    found = pd.read_csv(tmp_path / "sent.csv")
    assert list(found.columns) == ["id", *labels, "answer"]
    assert list(found["id"]) == ["x", "y"]
    known = found[labels].dropna()
    assert len(known) > 0
    assert known.sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)


def test_vllm_gives_the_answers_and_probabilities_of_transformers(splice, tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed: make vllm")
    models.make_base(backbone(head_dim=32, initializer_range=0.3), tmp_path / "base")
    model, tokenizer = models.compose(tmp_path / "base"), tokenization.load(tmp_path / "base")
    with torch.no_grad():  # so that it often ends a thought, after which labels have probabilities
        model.get_output_embeddings().weight[tokenizer.convert_tokens_to_ids("</think>")] *= 3

    def save(folder):
        model.save_pretrained(folder)
        files.write_json(folder / "inputs.json", TOKENS.describe(files.read_json(splice / "card.json"), model))

    folder = publish(tmp_path / "base", tmp_path / "checkpoint", save)
    pd.DataFrame({"sequence": NEW[:3]}).to_csv(tmp_path / "new.csv", index=False)
    found = []
    for engine in ("transformers", "vllm"):
        options = json.dumps({"max_new_tokens": 16, "engine": engine})
        more = ["--options", options, "--probabilities"]
        found.append(predict(folder, tmp_path / "new.csv", tmp_path / f"{engine}.parquet", more=more))
    assert found[0]["output"].nunique() == 3
    assert found[0]["probability:spliced"].notna().any()
    pd.testing.assert_frame_equal(*found, atol=1e-5)
