"""README.md of an exported folder: the model card, from what the checkpoints record, with code that runs in the folder.

The metadata are those of the hub (`huggingface_hub.ModelCardData`). What a checkpoint does not record (the licence of
the data, for example) is said to be missing, for the person who publishes the model.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import EvalResult, ModelCard, ModelCardData, try_to_load_from_cache

from cisterna import __version__, gguf_files, tasks, updates
from cisterna.artifacts import files
from cisterna.constants import SPLITS, TEST_SPLITS
from cisterna.publishing.joined import Base
from cisterna.publishing.merged import Chain
from cisterna.sequences import conventions
from cisterna.sequences.tokenization import TAGGED
from cisterna.tasks import table_prompt
from cisterna.tasks.catalog import LABELS

MEASURES = ("accuracy", "f1_micro")  # those that the metadata have, of the metrics that a task has
UNKNOWN = "unknown"
RESIDUES = {"dna": "ACGTACGTACGT", "rna": "ACGUACGUACGU", "protein": "MKVLAAGIVGLC"}  # of examples


@dataclass(frozen=True)
class Facts:
    """What a card is about: the checkpoint `folder` with its lineage `chain` and inputs.json, and how it was exported.

    `base` is that of an adapter, None for whole weights. `dtype` is that of the weights, `kept` the share of the update
    of each stage that they have. `tokenizer` is ours, with its conventions; `tokens` the most new ones of an output.
    """

    folder: Path
    chain: Chain
    inputs: Mapping[str, Any] | None
    name: str
    base: Base | None
    dtype: str
    kept: Mapping[str, float]
    tokenizer: Any
    tokens: int

    @property
    def reads_features(self) -> bool:
        """Whether sequences reach the model as features of an encoder, with or without tokens."""
        return self.inputs is not None and self.inputs["encoder"] is not None


def write(facts: Facts) -> str:
    """The text of the card."""
    spec = facts.chain[0][1]["recipe"]
    licence, of_licence = _licence(facts.chain[0][1])
    metrics = _metrics(facts.folder)
    task = facts.inputs["task"] if facts.inputs else None
    hub = (facts.inputs or {}).get("spec", {}).get("hub")
    published = "pretrained" in spec and not Path(spec["pretrained"]).exists()
    data = ModelCardData(
        license=licence,
        base_model=spec["pretrained"] if published else None,
        library_name="transformers" if facts.base is None else "peft",
        pipeline_tag="text-generation",
        tags=["biology", "cisterna", *([facts.inputs["modality"]] if facts.inputs else [])],
        datasets=[hub] if isinstance(hub, str) else None,
        model_name=facts.name,
        eval_results=list(_results(task, metrics)) or None,
    )
    sections = {
        facts.name: _opening(facts),
        "How to use it": _use(facts),
        "Data": _data(facts),
        "Lineage": _lineage(facts),
        "Results": _table(metrics),
        "Limits": _limits(facts),
        "Licence": of_licence,
    }
    first, *others = sections.items()
    text = "\n\n".join([f"# {first[0]}\n\n{first[1]}", *(f"## {title}\n\n{content}" for title, content in others)])
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n"))


def of_base(facts: Facts) -> str:
    """The text of the card of the weights that an exported adapter belongs on."""
    licence, of_licence = _licence(facts.chain[0][1])
    data = ModelCardData(license=licence, library_name="transformers", tags=["biology", "cisterna"])
    text = (
        f"# Base of {facts.name}\n\nThe weights that the adapter `{facts.name}` belongs on, and nothing of it. "
        f"The lineage is in the card of the adapter.\n\n## Licence\n\n{of_licence}"
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n"))


def _opening(facts: Facts) -> str:
    kinds = " + ".join(manifest["kind"].upper() for _, manifest in facts.chain[1:]) or "no training"
    what = (
        f"for the task `{facts.inputs['task']}` ({facts.inputs['modality']})"
        if facts.inputs
        else "of text and sequences"
    )
    spec = facts.chain[0][1]["recipe"]
    begun = (
        f"`{_name(spec['pretrained'])}`" + (" with random weights" if spec.get("random_weights") else "")
        if "pretrained" in spec
        else f"a {spec['architecture']['model_type']} model with random weights"
    )
    if stored := facts.chain[0][1]["trained"].get("quantization"):
        begun += f", whose weights were stored in {gguf_files.describe(stored)}"
    return (
        f"A language model {what}: {kinds} on {begun}. Exported by Cisterna {__version__} from the checkpoint "
        f"`{facts.chain[-1][1]['identity']}`."
    )


def _use(facts: Facts) -> str:
    prompt, note = _example(facts)
    code = _feature_code(facts, prompt) if facts.reads_features else _text_code(facts, prompt)
    parts = [f"Run this in the folder. {note}", f"```python\n{code}```"]
    if not facts.reads_features:
        parts.append("Instead of `.` the name of a model on the hub will do, once the folder is published there.")
    if facts.inputs is not None:
        known = conventions.of(facts.tokenizer)
        thought = f"{known.thought[0].strip()}REASONING{known.thought[1].strip()}" if known.thinking else ""
        begun = " The chat template has written its beginning." if known.opening else ""
        parts.append(f"An output is `{thought}Answer: ANSWER`.{begun}")
    if facts.base is not None:
        where = "which is in this folder and has to be published too" if facts.base.inside else "as it was published"
        parts.append(f"The adapter has the updates of all stages. It belongs on `{_name(facts.base.name)}`, {where}.")
    parts.append(
        "The tokenizer itself makes one token of each residue between `<dna>`, `<rna>` or `<protein>` and the closing "
        "tag. Lower case is read as upper case; IUPAC codes of nucleotides, and B, J, O, U, Z of proteins, as the "
        "unknown residue N or X. A stretch with any other letter (a gap, U in DNA, T in RNA) stays ordinary text, "
        "which the model has never seen there: check your sequences before."
    )
    return "\n\n".join(parts)


def _example(facts: Facts) -> tuple[str, str]:
    """A prompt, and what there is to say about it."""
    inputs = facts.inputs
    spec = inputs["spec"] if inputs else {"adapter": None}
    if inputs and not spec.get("adapter") and "file" not in spec and inputs["task"] in LABELS:
        rows = tasks.read(tasks.load(inputs["task"], spec))  # they ship with Cisterna, and are public
        return str(rows["prompt"].iloc[0]), "The prompt is one of the task's."
    if inputs and not spec.get("adapter"):  # rows of a user's own table are not for everybody
        form = table_prompt.of_spec(inputs["task"], spec, inputs["labels"])
        cells = {name: RESIDUES[kind] for name, kind in form.modalities.items()}
        cells |= {column: f"[{column}]" for column in form.fields}
        note = "The prompt has the form of the task's, with a made-up sequence"
        named = " and names of columns in brackets" if form.fields else ""
        return form.write(pd.DataFrame([cells]))[0], f"{note}{named}. To other questions this model has no answer."
    modality = inputs["modality"] if inputs else "dna"
    prompt = f"<{modality}>{RESIDUES[modality]}</{modality}>" if modality in RESIDUES else "Text."
    return prompt, (
        "The prompt only shows the form of sequences. Write prompts as those of the training data are (column `prompt` "
        "of its Parquet files): to other questions this model has learned no answer."
    )


def _text_code(facts: Facts, prompt: str) -> str:
    loader = "AutoModelForCausalLM" if facts.base is None else "AutoPeftModelForCausalLM"
    imports = (
        f"from transformers import {loader}, AutoTokenizer"
        if facts.base is None
        else (f"from peft import {loader}\nfrom transformers import AutoTokenizer, GenerationConfig")
    )
    inputs = 'tokenizer(prompt, return_tensors="pt")'
    if facts.tokenizer.chat_template:
        inputs = (
            'tokenizer.apply_chat_template(\n    [{"role": "user", "content": prompt}], add_generation_prompt=True, '
            'return_dict=True, return_tensors="pt"\n)'
        )
    settings = "" if facts.base is None else "\nmodel.generation_config = GenerationConfig.from_pretrained(folder)"
    return f"""\
import torch
{imports}

folder = "."
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {loader}.from_pretrained(folder, dtype=torch.{facts.dtype}).eval(){settings}

prompt = {prompt!r}
inputs = {inputs}
output = model.generate(**inputs)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""


def _feature_code(facts: Facts, prompt: str) -> str:
    assert facts.inputs is not None
    reading, width = facts.inputs["encoder"]["reading"], facts.inputs["bridge"]["width"]
    lengths = [len(match[2]) for match in TAGGED.finditer(prompt)]
    one = reading.get("per") == "example"
    rows = [1 if one else math.ceil(length / (reading.get("pool") or 1)) for length in lengths]
    return f"""\
import torch
from feature_model import encode, load

model, tokenizer = load(".", dtype=torch.{facts.dtype})

prompt = {prompt!r}
# Random numbers, to show the shapes: put the encoder's features of the residues between the tags here.
features = [torch.randn(rows, {width}) for rows in {rows}]
inputs = encode(model, tokenizer, [prompt], [features])
output = model.generate(**inputs)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""


def _data(facts: Facts) -> str:
    if facts.inputs is None:
        return "Trained on corpora without labels; their files and SHA-256 are in the lineage below."
    found = _task_card(facts)
    parts = [f"The task `{facts.inputs['task']}`, as the study has it:", _json(_without_folders(facts.inputs["spec"]))]
    if facts.inputs["labels"]:
        parts += ["Answers:", _json(facts.inputs["labels"])]
    if found is not None:
        counts = ", ".join(f"{split} {found['splits'][split]['rows']}" for split in SPLITS)
        parts.append(f"Examples: {counts}. How they were split: {_line(found['rule'])}.")
    if facts.reads_features:
        encoder = facts.inputs["encoder"]
        trained = " Its weights were trained too, and are in `encoder/`." if encoder["reading"].get("trained") else ""
        parts += [
            f"Between the tags the model reads features of an encoder (identity `{encoder['identity']}`), in the form "
            f"`{facts.inputs['sequences']}`, rounded to the type `storage`.{trained} How the encoder is read:",
            _json(encoder["reading"]),
        ]
    return "\n\n".join(parts)


def _task_card(facts: Facts) -> dict[str, Any] | None:
    """The card of the task's data in the results folder of the checkpoint, if it is that which was trained on."""
    assert facts.inputs is not None
    trained_on = facts.chain[-1][1]["data"].get("train.parquet")
    for above in facts.folder.absolute().parents:
        path = above / "data" / facts.inputs["task"] / "card.json"
        if above.name == "results" and path.is_file():
            found: dict[str, Any] = files.read_json(path)
            return found if found.get("files", {}).get("train.parquet") == trained_on else None
    return None


def _lineage(facts: Facts) -> str:
    parts = []
    for path, manifest in facts.chain:
        kept = facts.kept.get(str(path), 1.0)
        lines = [f"**{manifest['kind'].upper()}**, identity `{manifest['identity']}`, seed {manifest['seed']}"]
        if kept < updates.KEPT:
            lines[0] += f". The exported weights, in {facts.dtype}, have {kept:.2f} of its update"
        known = {key: _without_folders(manifest[key]) for key in ("recipe", "trained", "data") if manifest[key]}
        parts += [lines[0] + ":", _json(known)]
    packages = facts.chain[-1][1]["provenance"]["packages"]
    parts.append(
        "Packages of the last stage: " + ", ".join(f"{name} {version}" for name, version in packages.items()) + "."
    )
    parts.append(
        f"Weights are in {facts.dtype}. In another precision than that of the study, an output may differ where two "
        "tokens are almost equally probable."
    )
    return "\n\n".join(parts)


def _metrics(folder: Path) -> dict[str, dict[str, Any]]:
    """The metrics of the test splits, and perplexity on corpora, where they lie beside the checkpoint."""
    beside = folder.absolute().parent
    paths = beside / "eval" / "metrics.json", beside / "perplexity.json"
    found, corpora = (files.read_json(path) if path.is_file() else {} for path in paths)
    held_out = {f"held-out part of {_line(corpus)}": {"perplexity": numbers} for corpus, numbers in corpora.items()}
    return {split: found[split] for split in TEST_SPLITS if split in found} | held_out


def _results(task: str | None, metrics: Mapping[str, Mapping[str, Any]]) -> Iterator[EvalResult]:
    for split, values in metrics.items():
        for name in MEASURES:
            if name in values and values[name]["value"] is not None:
                yield EvalResult(
                    task_type="text-generation",
                    dataset_type=str(task),
                    dataset_name=str(task),
                    dataset_split=split,
                    metric_type=name,
                    metric_value=round(values[name]["value"], 4),
                    metric_name=f"{name}, {split}",
                )


def _table(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    if not metrics:
        return "None: the checkpoint was not evaluated where it was exported."
    lines = ["| split | metric | value | 95% interval | n |", "| --- | --- | --- | --- | --- |"]
    for split, values in metrics.items():
        for name, numbers in values.items():
            mix = ":" in name  # gold:LABEL and predicted:LABEL
            if not mix and numbers["value"] is not None:
                bounds = [numbers.get("low"), numbers.get("high")]
                interval = "" if None in bounds else f"{bounds[0]:.3f} to {bounds[1]:.3f}"
                lines.append(f"| {split} | {name} | {numbers['value']:.3f} | {interval} | {numbers['n']} |")
    return (
        "`id` are test examples like those of training, `ood` are out of domain. Greedy outputs, strict parsing: an "
        "output that is not `Answer: X` after its reasoning is wrong. Intervals are bootstrap intervals over examples; "
        "those over training seeds are wider.\n\n" + "\n".join(lines)
    )


def _limits(facts: Facts) -> str:
    limits = []
    if facts.inputs is not None:
        limits.append("It answers the questions of its task, in their wording, and no others.")
        limits.append("Its reasoning is generated text. It need not be how the answer came about.")
    limits.append(f"Outputs are cut after {facts.tokens} new tokens (generation_config.json).")
    limits.append("A research model. It is not for decisions about patients.")
    return "\n".join(f"- {limit}" for limit in limits)


def _licence(base: Mapping[str, Any]) -> tuple[str, str]:
    """The licence of the base as its own card or GGUF file has it, and what to say about it; `base` is its manifest."""
    spec = base["recipe"]
    of_data = "The licences of the training data are not recorded: add them before you publish."
    if "pretrained" not in spec:
        return (
            UNKNOWN,
            f"The base was made with random weights and has no licence: choose one, in the metadata above. {of_data}",
        )
    stored = base["trained"].get("quantization", {})
    name, found = str(spec["pretrained"]), stored.get("licence")
    path: Any = Path(name) / "README.md"
    if not stored and not Path(name).is_dir():
        path = try_to_load_from_cache(name, "README.md", revision=spec.get("revision"))
    if not found and isinstance(path, str | Path) and Path(path).is_file():
        found = ModelCard.load(path, ignore_metadata_errors=True).data.get("license")
    if not found:
        return (
            UNKNOWN,
            f"That of `{_name(name)}` is unknown here, because no model card of it with a licence was found: look it "
            f"up, and put it into the metadata above. {of_data}",
        )
    return str(found), f"That of `{_name(name)}`: {_line(str(found))}. {of_data}"


def _name(name: str) -> str:
    """A hub id, or the last part of a local folder."""
    return Path(name).name if Path(name).is_absolute() or Path(name).exists() else name


def _without_folders(value: Any) -> Any:
    """JSON without the folders of this machine: of absolute paths only the last part."""
    if isinstance(value, Mapping):
        return {_without_folders(key): _without_folders(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(part) for part in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _json(value: Any) -> str:
    text = json.dumps(value, indent=1, ensure_ascii=False).replace("```", "` ` `")
    return f"```json\n{text}\n```"


def _line(text: str) -> str:
    """A text of the user as part of a line of Markdown."""
    return " ".join(text.replace("<", "&lt;").split()).rstrip(".")
