"""The adapters of a lineage as one adapter of PEFT, and the base that it belongs on.

LoRA adds `up @ down` to a weight. Two stages of ranks 32 and 4 add the same as one adapter of rank 36 whose factors are
theirs side by side, and no product has to be rounded. Modules that were trained in full (`modules_to_save`) have their
last weights. So PEFT makes of the base exactly the model that was trained.

The base is the published model that the lineage began with. The rows of the residue tokens, which that model lacks, are
in the adapter (`trainable_token_indices`). Where the weights below the adapters are not published (a model made here, a
stage that trained all weights, a model with the adapter of others, the text model of a multimodal one), they are
written to `base/` in the exported folder.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from peft.utils import ModulesToSaveWrapper
from safetensors import safe_open
from transformers import AutoConfig

from cisterna import imported, models, updates
from cisterna.artifacts import files
from cisterna.errors import UserError
from cisterna.publishing import merged
from cisterna.publishing.merged import Chain
from cisterna.sequences import inputs_file
from cisterna.sequences.source import restore

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BASE = "base"  # the folder of weights that are not published


class Base(NamedTuple):
    """What an adapter belongs on: `name` as `from_pretrained` takes it, and whether it is in the exported folder.

    `dtype` is the one to load the model in: PEFT gives modules that were trained in full the dtype of the base.
    """

    name: str
    revision: str | None
    dtype: str
    inside: bool


class Update(NamedTuple):
    """What the adapters of some stages change: low-rank factors by layer, and modules that were trained in full."""

    factors: dict[str, tuple[torch.Tensor, torch.Tensor]]
    whole: list[str]


def save(
    chain: Chain, final: "PreTrainedModel", output: Path, published: Path, asked: str | None
) -> tuple[Base, dict[str, float]]:
    """Write the adapter of the lineage `chain` into `output`, to be published as `published`, and its base.

    `final` is the composed model of the lineage, in float32. Returns the base, and the share of the update of each
    stage that base and adapter have (see `merged.choose`). UserError for a checkpoint without an adapter, and for
    adapters that cannot be joined.
    """
    if not models.is_adapter(chain[-1][0]):
        raise UserError(f"{chain[-1][0]}: has all weights and no adapter. Export it without --adapter")
    first = next(n for n in range(len(chain), 0, -1) if not models.is_adapter(chain[n - 1][0]))  # the lowest adapter
    below, adapters = chain[:first], [path for path, _ in chain[first:]]
    base, kept = _base(below, published, asked)
    if asked and not base.inside:
        raise UserError(f"--dtype: the adapter is in float32, and the weights of {base.name} are not exported")
    update = _collect(models.compose(below[-1][0], torch.float32), adapters)
    model = models.compose(below[-1][0], torch.float32)
    if base.inside:
        merged.save(merged.load(below[-1][0], base.dtype), output / BASE)
    rows = {} if base.inside else _new_rows(model, chain[0][0], update)
    _write(model, update, final.state_dict(), rows, base, output)
    if update.whole:
        base = base._replace(dtype="float32")
    return base, kept | {str(path): 1.0 for path in adapters}


def _base(below: Chain, published: Path, asked: str | None) -> tuple[Base, dict[str, float]]:
    spec = below[0][1]["recipe"]
    if len(below) == 1 and _is_plain(below[0][0], spec):
        name = spec["pretrained"]
        local = Path(name).is_dir()
        return Base(
            str(Path(name).resolve()) if local else name, spec.get("revision"), spec.get("dtype", "float32"), False
        ), {}
    dtype, kept = merged.choose(below, asked)
    return Base(str((published / BASE).absolute()), None, dtype, True), kept


def _is_plain(folder: Path, spec: Mapping[str, Any]) -> bool:
    """Whether a base checkpoint is a published text model with nothing more than rows of new tokens that PEFT can add.

    PEFT cannot lengthen the per-layer embedding of Gemma 4, and a multimodal model has other names.
    """
    if [path.name for path in folder.glob("*.safetensors")] != [models.NEW_ROWS]:
        return False
    if imported.find(spec["pretrained"], spec.get("revision")):  # an adapter cannot be on another one
        return False
    with safe_open(folder / models.NEW_ROWS, "pt") as stored:
        tables = set(stored.keys())
    config = AutoConfig.from_pretrained(spec["pretrained"], revision=spec.get("revision"), trust_remote_code=False)
    return tables <= {"input", "output"} and config.get_text_config(decoder=True) is config


def _collect(model: "PreTrainedModel", adapters: Sequence[Path]) -> Update:
    """The update of `adapters`, in their order, for `model`, that below them, which is used up."""
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    whole: dict[str, None] = {}
    for path in adapters:
        if sequence_inputs := inputs_file.read(path):
            restore(model, sequence_inputs)
        adapted = models.attach(model, path)
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        for full, layer in list(updates.adapted_layers(adapted)):
            name = full.removeprefix(updates.PREFIX)
            if layer in ends:  # PEFT has no rows of new tokens beside another adapter of the layer
                whole[name] = None
            elif updates.can_stack(layer):
                down, up = updates.factors(layer)
                earlier = factors.get(name, (down[:0], up[:, :0]))
                factors[name] = torch.cat([earlier[0], down]), torch.cat([earlier[1], up], dim=1)
            else:
                raise UserError(
                    f"{path}: its adapter (DoRA, of experts, or with a bias) is no plain LoRA, which could be joined "
                    "with others or put on a published base. Export it without --adapter"
                )
        for full, module in adapted.named_modules():
            if isinstance(module, ModulesToSaveWrapper):
                whole[full.removeprefix(updates.PREFIX)] = None
        model = adapted.unload()
    own = [name for name in whole if name.partition(".")[0] not in ("bridge", "encoder")]
    return Update(
        {name: pair for name, pair in factors.items() if name not in own and not name.startswith("encoder.")}, own
    )


def _new_rows(model: "PreTrainedModel", base: Path, update: Update) -> dict[str, list[int]]:
    """The rows of the tokens that a base checkpoint has added, by embedding, unless that is stored as a whole.

    PEFT stores no rows of one of two tied embeddings where the other is stored as a whole. Then both are.
    """
    sizes = files.read_json(base / "tokens.json")
    rows = list(range(sizes["before"], sizes["after"]))
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    names = {module: name for name, module in model.named_modules()}
    ends = [names[module] for module in (first, last) if module is not None]
    if last is not None and last.weight is first.weight:
        if set(ends) & set(update.whole):
            update.whole.extend(name for name in ends if name not in update.whole)
        ends = ends[:1]
    return {name: rows for name in ends if rows and name not in update.whole}


def _write(
    model: Any, update: Update, final: dict[str, torch.Tensor], rows: dict[str, list[int]], base: Base, output: Path
) -> None:
    rank = max((len(down) for down, _ in update.factors.values()), default=1)
    for part in ("bridge", "encoder"):
        if hasattr(model, part):
            delattr(model, part)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=rank,  # the scales of the stages are in the factors
        target_modules=_targets(model, update),
        modules_to_save=update.whole or None,
        trainable_token_indices=rows or None,
    )
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, layer in updates.adapted_layers(adapted):
            down, up = update.factors[name.removeprefix(updates.PREFIX)]
            layer.lora_A["default"].weight.zero_()[: len(down)] = down
            layer.lora_B["default"].weight.zero_()[:, : len(down)] = up
        for name in update.whole:
            module = adapted.get_submodule(f"{updates.PREFIX}{name}").modules_to_save["default"]
            for own, weight in module.named_parameters():
                weight.copy_(final[f"{name}.{own}"])
    adapted.save_pretrained(output, save_embedding_layers=False)
    path = output / "adapter_config.json"
    stored = files.read_json(path)
    stored["target_modules"] = sorted(stored["target_modules"])
    files.write_json(path, stored | {"base_model_name_or_path": base.name, "revision": base.revision})


def _targets(model: Any, update: Update) -> list[str]:
    """The layers by the last parts of their names, if these say the same as the whole names do."""
    last = {name.rpartition(".")[2] for name in update.factors}
    meant = {name for name, module in model.named_modules() if name.rpartition(".")[2] in last}
    return sorted(last if meant == set(update.factors) else update.factors)
