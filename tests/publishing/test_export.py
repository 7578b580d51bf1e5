"""`cisterna export`: what transformers and PEFT alone make of the folder is the model that was trained.

Tolerance of logits as in tests/test_models.py: a merged weight and an adapter beside it differ by rounding, and what
must differ is above 1e-2.
"""

import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
from functools import partial

import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import families
from cisterna import cli, models
from cisterna.artifacts import checkpoint, files
from cisterna.evaluation import evaluate, generate
from cisterna.publishing import card
from cisterna.sequences import inputs_file, prompt, tokenization
from cisterna.sequences.source import TOKENS, connect, open_source
from tiny import READING, ROOT, adapted, backbone, hub_model, publish

CLOSE = {"atol": 1e-4, "rtol": 0}
GREEDY = {"max_new_tokens": 96, "batch_size": 1}
ROWS = 6


def export(folder, output, *more, code=0):
    assert cli.main(["export", str(folder), "--output", str(output), *more]) == code
    return output


def logits(model, size=400):
    ids = torch.randint(0, size, (2, 40), generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        return model(ids, use_cache=False).logits.float()


def ours(folder, splice, bank=None):
    """The first examples of `id`, with the token ids that Cisterna generates up to the end of the text."""
    frame = pd.read_parquet(splice / "id.parquet").head(ROWS)
    loaded = generate.load(folder, bank)
    outputs = generate.generate(loaded, loaded.encode(frame), GREEDY)
    return frame, [loaded.before_end(output) for output in outputs]


def theirs(model, tokenizer, inputs):
    """What transformers alone generates, up to the end of the text."""
    output = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :].tolist()
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return output[: next((place for place, token in enumerate(output) if token in ends), len(output))]


def blocks(folder, language="python"):
    return re.findall(rf"```{language}\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def whole(solved, tmp_path_factory):
    """The merged export of a trained model."""
    return export(solved.output, tmp_path_factory.mktemp("whole") / "solved")


@pytest.fixture(scope="module")
def above(solved, tmp_path_factory):
    """An adapter of rank 4 on some layers, above the trained model."""
    child = adapted(solved.output, 2, size=0.01, r=4, target_modules=["q_proj", "v_proj"])
    return publish(solved.output, tmp_path_factory.mktemp("above") / "checkpoint", child.save_pretrained, "rl")


# Whole weights


def test_plain_transformers_writes_the_same_tokens_from_plain_text(solved, whole, splice):
    tokenizer, model = AutoTokenizer.from_pretrained(whole), AutoModelForCausalLM.from_pretrained(whole)
    frame, expected = ours(solved.output, splice)
    assert "<rna>" in frame["prompt"][0]
    found = [theirs(model, tokenizer, tokenizer(text, return_tensors="pt")) for text in frame["prompt"]]
    assert found == expected
    assert len({tuple(output) for output in found}) > 1
    assert torch.equal(logits(model), logits(models.compose(solved.output)))


def test_folder_has_what_publishing_needs_and_nothing_of_cisterna(whole):
    names = {path.name for path in whole.iterdir()}
    assert names == {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    settings = GenerationConfig.from_pretrained(whole)
    assert settings.eos_token_id is not None
    assert (settings.do_sample, settings.max_new_tokens) == (False, 96)


@pytest.mark.parametrize(
    ("lora", "tie"),
    [
        ({}, False),
        ({}, True),
        ({"modules_to_save": ["lm_head"]}, True),
        ({"target_modules": ["embed_tokens", "q_proj"]}, True),
        ({"use_dora": True}, False),
    ],
    ids=["untied", "tied", "output", "embedding", "dora"],
)
def test_merged_weights_are_those_of_the_lineage(tmp_path, tie, lora):
    models.make_base(backbone(tie_word_embeddings=tie), tmp_path / "base")
    sft = publish(tmp_path / "base", tmp_path / "sft", adapted(tmp_path / "base", **lora).save_pretrained)
    rl = publish(sft, tmp_path / "rl", adapted(sft, 2, r=2).save_pretrained, "rl")
    loaded = AutoModelForCausalLM.from_pretrained(export(rl, tmp_path / "out"))
    assert torch.equal(logits(loaded), logits(models.compose(rl)))
    assert (logits(loaded) - logits(models.compose(tmp_path / "base"))).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["qwen2", "qwen3.5", "gemma4", "gpt-neox", "gpt2"])
def test_other_families_of_decoders_are_exported(tmp_path, family, monkeypatch):
    monkeypatch.setitem(families.FORMS, "qwen2", ("Qwen2ForCausalLM", families.GROUPED))
    families.make(family, tmp_path / "hub")
    base = tmp_path / "base"
    models.make_base({"pretrained": str(tmp_path / "hub")}, base)
    sft = publish(base, tmp_path / "sft", adapted(base).save_pretrained)
    expected, size = models.compose(sft), len(tokenization.load(base))
    merged = AutoModelForCausalLM.from_pretrained(export(sft, tmp_path / "merged"))
    assert torch.equal(logits(merged, size), logits(expected, size))
    joined = AutoPeftModelForCausalLM.from_pretrained(export(sft, tmp_path / "adapter", "--adapter"))
    torch.testing.assert_close(logits(joined, size)[..., :size], logits(expected, size)[..., :size], **CLOSE)
    text = "Spliced? <rna>GUAAGU</rna>"
    ours = prompt.encode_prompts(tokenization.load(base), [text], TOKENS, [[]], 0)
    for name in ("merged", "adapter"):
        assert [AutoTokenizer.from_pretrained(tmp_path / name)(text)["input_ids"]] == ours


# Adapters


@pytest.mark.parametrize(
    ("lora", "tie", "spare"),
    [
        ({}, False, 0),
        ({}, True, 100),
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, False, 100),
        ({"modules_to_save": ["lm_head"]}, True, 0),
        ({"target_modules": ["embed_tokens", "q_proj"]}, True, 0),
        ({"target_modules": ["lm_head", "q_proj"]}, False, 0),
    ],
    ids=["untied", "tied-with-room", "both-embeddings", "tied-output", "embedding", "output-layer"],
)
def test_adapters_of_all_stages_are_one_on_the_published_base(tmp_path, tie, spare, lora):
    hub_model(tmp_path / "hub", tie, spare)
    base = tmp_path / "base"
    models.make_base({"pretrained": str(tmp_path / "hub")}, base)
    sft = publish(base, tmp_path / "sft", adapted(base, **lora).save_pretrained)
    rl = publish(sft, tmp_path / "rl", adapted(sft, 2, r=4, lora_alpha=4).save_pretrained, "rl")
    output = export(rl, tmp_path / "out", "--adapter")
    config = files.read_json(output / "adapter_config.json")
    assert config["base_model_name_or_path"] == str(tmp_path / "hub")
    assert config["r"] == 12
    assert not (output / "base").exists()
    model, size = AutoPeftModelForCausalLM.from_pretrained(output), len(tokenization.load(base))
    expected = models.compose(rl)
    torch.testing.assert_close(logits(model, size)[..., :size], logits(expected, size)[..., :size], **CLOSE)
    assert (logits(expected, size) - logits(models.compose(sft), size)).abs().max() > 1e-2


def test_adapter_on_weights_that_are_not_published_has_them_beside_it(above, splice, tmp_path, capsys):
    output = export(above, tmp_path / "out", "--adapter")
    assert f"belongs on {output / 'base'}, which is not published yet" in capsys.readouterr().err
    model, tokenizer = AutoPeftModelForCausalLM.from_pretrained(output), AutoTokenizer.from_pretrained(output)
    model.generation_config = GenerationConfig.from_pretrained(output)
    assert model.peft_config["default"].r == 12
    frame, expected = ours(above, splice)
    assert [theirs(model, tokenizer, tokenizer(text, return_tensors="pt")) for text in frame["prompt"]] == expected
    torch.testing.assert_close(logits(model), logits(models.compose(above)), **CLOSE)
    shutil.move(output, tmp_path / "elsewhere")
    with pytest.raises(OSError, match=re.escape(str(output / "base"))):  # and not another base
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "elsewhere")


def test_base_of_an_adapter_has_the_weights_that_a_stage_has_trained_in_full(base, tmp_path):
    def save(folder):
        model = models.compose(base)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        model.save_pretrained(folder)

    full = publish(base, tmp_path / "full", save, "cpt")
    child = publish(full, tmp_path / "child", adapted(full, r=3).save_pretrained)
    output = export(child, tmp_path / "out", "--adapter")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(output / "base")), logits(models.compose(full)))
    model = AutoPeftModelForCausalLM.from_pretrained(output)
    torch.testing.assert_close(logits(model), logits(models.compose(child)), **CLOSE)


@pytest.mark.parametrize("what", ["full", "dora"])
def test_what_is_no_plain_adapter_is_refused(base, tmp_path, capsys, what):
    trained = adapted(base, use_dora=True) if what == "dora" else models.compose(base)
    child = publish(base, tmp_path / "child", trained.save_pretrained)
    export(child, tmp_path / "out", "--adapter", code=2)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {child}: ")
    assert error.endswith("Export it without --adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["child"]


def test_dtype_of_a_published_base_is_not_ours_to_choose(tmp_path, capsys):
    hub_model(tmp_path / "hub", tie=False, spare=0)
    base = tmp_path / "base"
    models.make_base({"pretrained": str(tmp_path / "hub")}, base)
    sft = publish(base, tmp_path / "sft", adapted(base).save_pretrained)
    export(sft, tmp_path / "out", "--adapter", "--dtype", "bfloat16", code=2)
    assert (
        f"--dtype: the adapter is in float32, and the weights of {tmp_path / 'hub'} are not" in capsys.readouterr().err
    )


# Precision


@pytest.mark.parametrize(("size", "dtype"), [(0.1, "bfloat16"), (2e-5, "float32")], ids=["large", "small"])
def test_weights_are_in_the_dtype_of_the_base_only_where_it_keeps_the_update(tmp_path, capsys, size, dtype):
    hub_model(tmp_path / "hub", tie=False, spare=0)
    base = tmp_path / "base"
    models.make_base({"pretrained": str(tmp_path / "hub"), "dtype": "bfloat16"}, base)
    sft = publish(base, tmp_path / "sft", adapted(base, size=size).save_pretrained)
    output = export(sft, tmp_path / "out")
    notes = capsys.readouterr().err
    assert ("weights are in float32" in notes) == (dtype == "float32")
    assert {str(tensor.dtype) for tensor in load_file(output / "model.safetensors").values()} == {f"torch.{dtype}"}
    assert f"Weights are in {dtype}" in (output / "README.md").read_text()
    if dtype == "float32":
        forced = export(sft, tmp_path / "forced", "--dtype", "bfloat16")
        assert re.search(rf"warning: weights in bfloat16 have 0\.\d\d of the update of {sft}", capsys.readouterr().err)
        assert re.search(r"in bfloat16, have 0\.\d\d of its update", (forced / "README.md").read_text())
        torch.testing.assert_close(
            logits(AutoModelForCausalLM.from_pretrained(output)), logits(models.compose(sft, torch.float32)), **CLOSE
        )


def test_weights_that_float16_does_not_reach_are_said_to_be_lost(base, tmp_path, capsys):
    def save(folder):
        model = models.compose(base)
        with torch.no_grad():
            model.lm_head.weight[3, 3] = 1e6
        model.save_pretrained(folder)

    child = publish(base, tmp_path / "child", save)
    export(child, tmp_path / "out", "--dtype", "float16")
    assert f"warning: weights in float16 have 0.00 of the update of {child}" in capsys.readouterr().err


@pytest.mark.parametrize(("size", "dtype"), [(0.1, "bfloat16"), (2e-5, "float32")], ids=["large", "small"])
def test_an_adapter_of_others_below_the_stages_is_exported_with_them(tmp_path, size, dtype):
    model, _ = hub_model(tmp_path / "hub", tie=False, spare=0)
    theirs = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(3)
    for parameter in filter(lambda one: one.requires_grad, theirs.parameters()):
        parameter.data += size * torch.randn(parameter.shape, generator=generator)
    theirs.save_pretrained(tmp_path / "theirs")
    settings = files.read_json(tmp_path / "theirs" / "adapter_config.json")
    files.write_json(
        tmp_path / "theirs" / "adapter_config.json", settings | {"base_model_name_or_path": str(tmp_path / "hub")}
    )
    base = tmp_path / "base"
    models.make_base({"pretrained": str(tmp_path / "theirs"), "dtype": "bfloat16"}, base)
    sft = publish(base, tmp_path / "sft", adapted(base).save_pretrained)
    expected = logits(models.compose(sft, torch.float32))
    for number, folder in enumerate((base, sft)):  # theirs alone, and below a stage
        output = export(folder, tmp_path / f"out-{number}")
        tensors = load_file(output / "model.safetensors")
        assert {str(tensor.dtype) for tensor in tensors.values()} == {f"torch.{dtype}"}
    joined = AutoPeftModelForCausalLM.from_pretrained(export(sft, tmp_path / "joined", "--adapter"), dtype="float32")
    torch.testing.assert_close(logits(joined), expected, atol=0.05 if dtype == "bfloat16" else 1e-4, rtol=0)


# Features


def features_of(frame, bank):
    """The features of each tagged stretch of each prompt, as a user of the encoder would make them."""
    from cisterna.sequences import feature_bank
    from cisterna.sequences.windows import tagged_stretches, window_of

    opened, found = feature_bank.Bank(bank), []
    for text, segments in zip(frame["prompt"], frame["segments"], strict=True):
        rows = []
        for stretch, segment in zip(tagged_stretches(text), segments, strict=True):
            window = window_of(stretch, segment, opened.reading["flank"])
            first, _ = opened.locate(window.text)
            rows.append(opened.rows(torch.arange(first + window.first, first + window.last)))
        found.append(rows)
    return found


@pytest.fixture
def loader(monkeypatch):
    """Import feature_model.py of an exported folder, by its name alone, as a user does."""

    def load(folder):
        for name in ("feature_model", "bridge"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.syspath_prepend(folder)
        module = importlib.import_module("feature_model")
        assert module.__file__ == str(folder / "feature_model.py")
        return module

    return load


@pytest.mark.parametrize("options", [[], ["--adapter"]], ids=["merged", "adapter"])
def test_model_that_reads_features_gives_the_same_tokens_and_logits(featured, splice, bank, tmp_path, loader, options):
    output = export(featured.output, tmp_path / "out", *options)
    module = loader(output)
    model, tokenizer = module.load(output)
    frame, expected = ours(featured.output, splice, bank)
    found = []
    loaded = generate.load(featured.output, bank)
    for text, rows in zip(frame["prompt"], features_of(frame, bank), strict=True):
        inputs = module.encode(model, tokenizer, [text], [rows])
        found.append(theirs(model, tokenizer, inputs))
        (ids,) = loaded.encode(frame[frame["prompt"] == text])
        with torch.inference_mode():
            torch.testing.assert_close(model(**inputs).logits, loaded.model(torch.tensor([ids])).logits, **CLOSE)
    assert found == expected
    batch = module.encode(model, tokenizer, list(frame["prompt"]), features_of(frame, bank))
    assert batch["input_ids"].shape[0] == ROWS
    with pytest.raises(ValueError, match="1 stretches in tags, but features of 0"):
        module.encode(model, tokenizer, ["<rna>A</rna>"], [[]])
    with pytest.raises(ValueError, match=r"features of shape \(1, 3\)"):
        module.encode(model, tokenizer, ["<rna>A</rna>"], [[torch.zeros(1, 3)]])


@pytest.mark.parametrize("form", ["features", "both"])
def test_prompts_with_features_are_those_of_cisterna_in_each_form(featured, splice, tmp_path, loader, form):
    module = loader(export(featured.output, tmp_path / "out"))
    model, tokenizer = module.load(tmp_path / "out")
    model.form = form
    text = "A <rna>AC</rna> b <rna> FTL CD74</rna>. <dna>G</dna>"
    rows = [torch.full((count, model.rows.width), float(count)) for count in (2, 1, 3)]
    inputs = module.encode(model, tokenizer, [text], [rows])
    known = tokenization.load(models.base_of(featured.output))
    written = tokenization.expand(text, form).split(tokenization.PLACEHOLDER)
    first, start, expected = model.get_input_embeddings().num_embeddings, 0, []
    for part, count in zip(written, (2, 1, 3, 0), strict=True):
        expected += known(part, add_special_tokens=False)["input_ids"] + [first + start + row for row in range(count)]
        start += count
    assert inputs["input_ids"].tolist() == [expected]
    assert torch.equal(model.rows.given, torch.cat(rows))


def test_encoder_that_was_trained_is_in_the_folder(base, esm, splice, tmp_path):
    found = files.read_json(splice / "card.json")
    source = open_source("features", "rna", encoder=esm, reading=READING | {"trained": True, "bank": False})
    model = models.compose(base)
    connect(model, source)
    with torch.no_grad():
        for weight in model.encoder.parameters():
            weight += 0.5
    model.save_pretrained = partial(model.save_pretrained, save_original_format=False)

    def save(folder):
        model.save_pretrained(folder)
        inputs_file.write(folder, tmp_path / "sft", source.describe(found, model))

    output = export(publish(base, tmp_path / "sft", save), tmp_path / "out")
    encoder, trained = AutoModel.from_pretrained(output / "encoder").state_dict(), model.encoder.state_dict()
    assert all(torch.equal(tensor, encoder[name]) for name, tensor in trained.items())
    assert not [name for name in load_file(output / "model.safetensors") if name.startswith(("bridge", "encoder"))]
    assert "Its weights were trained too, and are in `encoder/`" in (output / "README.md").read_text()


# The card


def test_code_of_the_cards_runs_without_cisterna_and_prints_what_cisterna_answers(
    solved, whole, above, featured, splice, tmp_path
):
    outputs = [whole, export(above, tmp_path / "adapter", "--adapter"), export(featured.output, tmp_path / "features")]
    script = "import os, sys\nsys.modules['cisterna'] = None\n"
    for output in outputs:
        (code,) = blocks(output)
        script += f"os.chdir({str(output)!r})\nsys.path.insert(0, '.')\nexec({code!r})\nprint('-----')\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.split("-----\n")
    for text, output, folder in zip(printed[:2], outputs[:2], (solved.output, above), strict=True):
        prompt = re.search(r"^prompt = (.*)$", blocks(output)[0], re.MULTILINE)[1]
        frame = pd.DataFrame({"prompt": [ast.literal_eval(prompt)], "segments": [[]]})
        loaded = generate.load(folder)
        (ids,) = generate.generate(loaded, loaded.encode(frame), GREEDY)
        expected = loaded.tokenizer.decode(ids, skip_special_tokens=True)
        assert text.strip() == expected.strip()
    assert "Answer: " in printed[0]
    assert printed[2].strip()


@pytest.fixture(scope="module")
def results(base, splice, tmp_path_factory):
    """A results folder with a checkpoint, the data that it was trained on, and its evaluation."""
    root = tmp_path_factory.mktemp("card") / "results"
    parent = shutil.copytree(base, root / "models" / "tiny" / "base" / "checkpoint")
    shutil.copytree(splice, root / "data" / "splice-donor")
    found = files.read_json(splice / "card.json")
    output = root / "models" / "tiny" / "base" / "splice-donor" / "s0" / "sft-a" / "e1" / "checkpoint"
    inputs = {key: found[key] for key in ("task", "spec", "labels", "modality")}

    def save(folder):
        adapted(parent).save_pretrained(folder)
        inputs_file.write(folder, output, inputs | {"sequences": "tokens", "encoder": None, "bridge": None})

    publish(parent, output, save, train=found["files"]["train.parquet"])
    evaluate.evaluate(output, splice, output.parent / "eval", {"max_new_tokens": 4, "batch_size": 24, "bootstrap": 50})
    return output


def test_card_says_data_lineage_recipe_results_limits_and_licence(results, tmp_path):
    output = export(results, tmp_path / "my-model")
    content, text = ModelCard.load(output / "README.md"), (output / "README.md").read_text()
    assert content.data.license == "unknown"
    assert content.data.to_dict()["library_name"] == "transformers"
    metrics = files.read_json(results.parent / "eval" / "metrics.json")
    values = {(found.dataset_split, found.metric_type): found.metric_value for found in content.data.eval_results}
    for split in ("id", "ood"):
        accuracy = metrics[split]["accuracy"]
        assert values[split, "accuracy"] == round(accuracy["value"], 4)
        interval = f"{accuracy['low']:.3f} to {accuracy['high']:.3f}"
        assert f"| {split} | accuracy | {accuracy['value']:.3f} | {interval} | {accuracy['n']} |" in text
    assert "Examples: train 64, validation 16, id 24, ood 24." in text
    for _, manifest in checkpoint.lineage(results):
        assert manifest["identity"] in text
    recipes = [json.loads(block) for block in blocks(output, "json")]
    assert any(block.get("recipe") == {"learning_rate": 1e-3} for block in recipes if isinstance(block, dict))
    assert all(f"## {title}" in text for title in ("Limits", "Licence", "How to use it"))
    assert str(results.parents[7]) not in text  # no folder of this machine
    assert str(card.Path(__file__).parents[2]) not in text


def test_code_of_the_card_asks_through_the_chat_template(tmp_path, monkeypatch, capsys):
    _, tokenizer = hub_model(tmp_path / "hub", tie=False, spare=0)
    tokenizer.chat_template = "{% for m in messages %}Q: {{ m.content }}\n{% endfor %}A: "
    tokenizer.save_pretrained(tmp_path / "hub")
    base = tmp_path / "base"
    models.make_base({"pretrained": str(tmp_path / "hub")}, base)
    monkeypatch.chdir(export(base, tmp_path / "out"))
    capsys.readouterr()
    exec(blocks(tmp_path / "out")[0], {})
    printed = capsys.readouterr().out
    loaded = generate.load(base)
    frame = pd.DataFrame({"prompt": ["<dna>ACGTACGTACGT</dna>"], "segments": [[]], "id": ["1"]})
    (ids,) = generate.generate(loaded, loaded.encode(frame), GREEDY)
    assert printed.strip() == loaded.tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_prompt_of_the_card_has_the_form_of_a_users_table_and_none_of_its_rows(base, tmp_path):
    spec = {
        "file": "/home/someone/secret/patients.csv", "modality": "dna", "labels": ["low", "high"], "ood": ["x"],
        "columns": {"id": "name", "sequence": {"first": "a", "second": "b"}, "label": "class", "group": "family"},
        "prompt": "Which is {kind}? {first} or {second}. {options}",
    }  # fmt: skip
    inputs = {"task": "mine", "spec": spec, "labels": ["low", "high"], "modality": "dna", "sequences": "tokens"}

    def save(folder):
        adapted(base).save_pretrained(folder)
        inputs_file.write(folder, tmp_path / "sft", inputs | {"encoder": None, "bridge": None})

    output = export(publish(base, tmp_path / "sft", save), tmp_path / "out")
    sequence = "<dna>ACGTACGTACGT</dna>"
    assert f"prompt = 'Which is [kind]? {sequence} or {sequence}. low, high\\n'" in blocks(output)[0]
    text = (output / "README.md").read_text()
    assert "patients.csv" in text
    assert "/home/someone" not in text


def test_card_says_what_the_chat_template_has_written_of_an_output(tmp_path):
    _, tokenizer = hub_model(tmp_path / "hub", tie=False, spare=0)
    tokenizer.chat_template = "{% for m in messages %}Q: {{ m.content }}\n{% endfor %}A: <think>\n"
    tokenizer.save_pretrained(tmp_path / "hub")
    base = tmp_path / "base"
    models.make_base({"pretrained": str(tmp_path / "hub")}, base)
    inputs = {"task": "splice-donor", "spec": {}, "labels": ["spliced", "skipped"], "modality": "rna"}

    def save(folder):
        adapted(base).save_pretrained(folder)
        inputs_file.write(folder, tmp_path / "sft", inputs | {"sequences": "tokens", "encoder": None, "bridge": None})

    text = (export(publish(base, tmp_path / "sft", save), tmp_path / "out") / "README.md").read_text()
    form = "An output is `<think>REASONING</think>Answer: ANSWER`. The chat template has written its beginning."
    assert form in text


def test_perplexity_of_a_model_of_text_is_in_its_card(base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "base" / "checkpoint")
    numbers = {"value": 3.5, "low": 3.25, "high": 3.75, "n": 1000}
    files.write_json(tmp_path / "base" / "perplexity.json", {"dna": numbers})
    text = (export(folder, tmp_path / "out") / "README.md").read_text()
    assert "| held-out part of dna | perplexity | 3.500 | 3.250 to 3.750 | 1000 |" in text


@pytest.mark.parametrize("licence", ["apache-2.0", None])
def test_licence_is_that_of_the_card_of_the_base(tmp_path, licence):
    hub_model(tmp_path / "hub", tie=False, spare=0)
    if licence:
        (tmp_path / "hub" / "README.md").write_text(f"---\nlicense: {licence}\n---\n# A model\n")
    models.make_base({"pretrained": str(tmp_path / "hub")}, tmp_path / "base")
    output = export(tmp_path / "base", tmp_path / "out")
    assert ModelCard.load(output / "README.md").data.license == (licence or "unknown")
    assert ("is unknown here" in (output / "README.md").read_text()) == (licence is None)


def test_commands_and_code_of_the_docs_run(results, splice, tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / "publishing.md").read_text()
    commands = re.findall(r"^cisterna (export .*)$", text, re.MULTILINE)
    assert len(commands) == 2
    monkeypatch.chdir(tmp_path)
    for command in commands:
        words = command.split()
        assert cli.main([*words[:1], str(results), *words[2:]]) == 0
    AutoPeftModelForCausalLM.from_pretrained("my-adapter")
    capsys.readouterr()
    code, _ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)  # the other one is of a model that reads features
    exec(code, {})
    assert capsys.readouterr().out.strip()


# Refusals


@pytest.mark.parametrize("there", ["full", "file", "empty"])
def test_only_a_new_or_empty_folder_is_written(base, tmp_path, capsys, there):
    output = tmp_path / "out"
    output.touch() if there == "file" else output.mkdir()
    if there == "full":
        (output / "mine.txt").touch()
    export(base, output, code=0 if there == "empty" else 2)
    if there != "empty":
        assert f"error: {output}: exists already. Give a new or an empty folder" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_changed_checkpoint_and_missing_parent_export_nothing(base, tmp_path, capsys):
    parent = shutil.copytree(base, tmp_path / "base")
    child = publish(parent, tmp_path / "child", adapted(parent).save_pretrained)
    shutil.move(parent, tmp_path / "moved")
    export(child, tmp_path / "out", code=2)
    assert f"{child}: its parent is missing: expected the checkpoint {parent}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_encoders_are_not_exported(esm, tmp_path, capsys):
    export(esm, tmp_path / "out", code=2)
    assert f"{esm}: not a checkpoint of a language model" in capsys.readouterr().err
