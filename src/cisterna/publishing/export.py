"""`cisterna export`: a checkpoint as one folder that transformers, or PEFT, load without Cisterna.

    config.json, model.safetensors     the whole model, every stage merged
    adapter_config.json, adapter_model.safetensors, base/    with --adapter instead: see `publishing.joined`
    tokenizer.json ...                 turns <dna>ACGT</dna> in plain text into residue tokens by itself
    generation_config.json             greedy, with the end tokens of the backbone
    bridge.safetensors, features.json, bridge.py, feature_model.py, encoder/     of a model that reads features
    README.md                          the model card, with code that runs in the folder

The folder appears as a whole or not at all. Every file of the lineage is checked before (`checkpoint.lineage`).
"""

import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from transformers import GenerationConfig

from cisterna import models, updates
from cisterna.artifacts import checkpoint, files
from cisterna.errors import UserError
from cisterna.publishing import card, joined, merged, tokenizer
from cisterna.sequences import bridge, inputs_file, tokenization
from cisterna.study.config import evaluation_options

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def export(folder: Path, output: Path, adapter: bool = False, dtype: str | None = None) -> None:
    """Export the checkpoint `folder` into the new folder `output`; see the module for what is in it.

    `dtype` is that of the weights (one of `merged.DTYPES`), by default one that keeps what was trained. UserError for
    a folder that is not empty, and for what cannot be exported.
    """
    if output.is_symlink() or (output.exists() and (not output.is_dir() or any(output.iterdir()))):
        raise UserError(f"{output}: exists already. Give a new or an empty folder")
    if checkpoint.read_manifest(folder)["kind"] not in ("base", "cpt", "sft", "rl"):
        raise UserError(f"{folder}: not a checkpoint of a language model")
    chain = checkpoint.lineage(folder)
    ours = tokenization.load(chain[0][0])
    inputs = inputs_file.read(folder)
    if inputs is None and (chain[0][0] / models.BRIDGE).is_file():
        raise UserError(
            f"{folder}: has a bridge, and no task that says which features it reads. Export a checkpoint of SFT or RL "
            "above it, or one of a backbone without the key `bridge`"
        )
    with files.new_folder(output) as made:
        if adapter:
            model = models.compose(folder, merged.torch_dtype("float32"))
            base, kept = joined.save(chain, model, made, output, dtype)
            chosen = base.dtype
        else:
            base, (chosen, kept) = None, merged.choose(chain, dtype)
            model = merged.load(folder, chosen)
            merged.save(model, made)
        tokenizer.save(ours, made, model.config)
        tokens = _longest(chain)
        ends = model.generation_config
        GenerationConfig(
            eos_token_id=ends.eos_token_id, pad_token_id=ends.pad_token_id, max_new_tokens=tokens, do_sample=False
        ).save_pretrained(made)
        if inputs is not None and inputs["encoder"] is not None:
            _save_features(model, inputs, made)
        facts = card.Facts(folder, chain, inputs, output.name, base, chosen, kept, ours, tokens)
        if base is not None and base.inside:
            tokenizer.save(ours, made / joined.BASE, model.config)
            (made / joined.BASE / "README.md").write_text(card.of_base(facts))
        (made / "README.md").write_text(card.write(facts))
    for line in _notes(chain, chosen, kept, base, dtype):
        print(line, file=sys.stderr)
    print(f"{output}: {'an adapter' if adapter else 'a model'} with its card, README.md", flush=True)


def _longest(chain: merged.Chain) -> int:
    """The most new tokens of an output: as in RL, or evaluation's default."""
    lengths = [int(manifest["recipe"].get("max_completion_length") or 0) for _, manifest in chain]
    return max(int(evaluation_options({})["max_new_tokens"]), *lengths)


def _save_features(model: "PreTrainedModel", inputs: dict[str, Any], folder: Path) -> None:
    """Write the bridge, what it reads, the code that loads it, and an encoder that was trained."""
    weights = {name: tensor.detach().float().contiguous() for name, tensor in model.bridge.state_dict().items()}
    save_file(weights, folder / "bridge.safetensors", metadata={"format": "pt"})
    encoder = {key: inputs["encoder"][key] for key in ("identity", "reading")}
    described = {key: inputs[key] for key in ("sequences", "modality", "bridge")}
    files.write_json(folder / "features.json", described | {"encoder": encoder})
    if hasattr(model, "encoder"):
        model.encoder.save_pretrained(folder / "encoder", save_original_format=False)
    source = inspect.getsource(bridge).replace("from cisterna.errors import UserError\n", "UserError = ValueError\n")
    (folder / "bridge.py").write_text(source)
    loader = (Path(__file__).parent / "feature_model.py").read_text()
    (folder / "feature_model.py").write_text(loader.replace("from cisterna.sequences.bridge", "from bridge"))


def _notes(
    chain: merged.Chain, dtype: str, kept: dict[str, float], base: "joined.Base | None", asked: str | None
) -> list[str]:
    """What the user has to know beside the card."""
    notes = []
    lost = {path: share for path, share in kept.items() if share < updates.KEPT}
    for path, share in lost.items():
        notes.append(f"warning: weights in {dtype} have {share:.2f} of the update of {path}; in float32 all of it")
    of_base = chain[0][1]["recipe"].get("dtype", "float32")
    if asked is None and dtype != of_base:
        notes.append(
            f"weights are in {dtype}: in {of_base}, as the base is, less than {updates.KEPT} of the update of a stage "
            f"would be left. --dtype {of_base} exports them so all the same"
        )
    if base is not None and base.inside:
        notes.append(
            f"the adapter belongs on {base.name}, which is not published yet. Publish it as a model, and put its name "
            "into adapter_config.json (base_model_name_or_path); if the folder is moved, put its new path there"
        )
    elif base is not None and Path(base.name).is_dir():
        notes.append(
            f"the adapter belongs on the local folder {base.name}. Before you publish it, put the name of that model "
            "on the hub into adapter_config.json (base_model_name_or_path)"
        )
    return notes
