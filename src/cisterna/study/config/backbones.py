"""The section `backbones`: causal language models, made here or pretrained."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator

from cisterna.study.config import types as t


class Architecture(t.Open):
    """Keys of a transformers config. Causal decoders only that keep attention inside a document when positions
    restart, which packed CPT needs.
    """

    options_section: ClassVar = "architectures"

    model_type: Annotated[Literal["llama", "mistral", "qwen2", "qwen3"], t.Choice] = t.required("the architecture.")


class Tokenizer(t.Section):
    """The tokenizer of a backbone."""

    vocab_size: t.Count = t.required(
        "tokens of text (256 bytes, 2 control tokens, learned pieces); the 39 tokens for residues, tags and thinking "
        "come on top."
    )
    files: Annotated[list[t.Path], t.Some] = t.required("text to train it on.")


class MadeBackbone(t.Section):
    """A backbone made here (`architecture`)."""

    architecture: Architecture = t.required(
        "keys of the transformers config of `model_type`, by their names (`hidden_size`, `num_hidden_layers`, ...). "
        "The vocabulary size comes from the tokenizer."
    )
    tokenizer: Tokenizer = t.required("the tokenizer that is trained for it.")
    seed: t.Natural = t.default(0, "seed of the random initial weights.")


class ImportedBridge(t.Section):
    """`bridge` of a backbone."""

    file: t.Text = t.required("file beside the model with one linear layer: `dna_projection.pt`, or `.safetensors`.")
    encoder: t.PlainName = t.required("the encoder (`encoders`) on whose features it was trained.")


def _unquoted(value: Any) -> Any:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        raise t.rule(f"{value.lower()} without quotes: a chat template takes every text for true")
    return value


TemplateValue = Annotated[Any, AfterValidator(_unquoted)]


class PretrainedBackbone(t.Section):
    """A pretrained backbone (`pretrained`)."""

    pretrained: t.Text = t.required(
        "hub id (`Qwen/Qwen3-1.7B`) or local folder; of a model, or of a LoRA adapter of PEFT, which names its base. "
        "Or a GGUF file, or a folder with one ([how](../docs/backbones.md#gguf))."
    )
    revision: t.Text | None = t.default(
        None, "commit, tag or branch on the hub; null is the newest. Give a commit, so that the study can be repeated."
    )
    chat_template_kwargs: dict[str, TemplateValue] = t.optional(
        "options of its chat template, by their names there: `{enable_thinking: true}`. See "
        "[backbones.md](../docs/backbones.md#thinking).",
        "those of the template",
    )
    bridge: ImportedBridge = t.optional(
        "a bridge that was published with the model ([how](../docs/backbones.md#bridges-of-others)).", "none"
    )
    random_weights: t.Flag = t.optional(
        "draw all weights anew, as a control: the same architecture, tokenizer and chat template, and nothing learned.",
        "`false`",
    )
    think_tokens: t.Flag = t.optional(
        "add the tokens `<think>` and `</think>` where the tokenizer has none. `false`: the model writes the marks in "
        "tokens that it knows, such as `<`, `think`, `>` ([which](../docs/backbones.md#marks-as-tokens-or-as-text)).",
        "`true`",
    )
    dtype: t.Dtype = t.default(
        "float32", "type of the loaded weights. What is trained is kept in float32, beside them or in their place."
    )


def _model(entry: dict[str, Any]) -> type[t.Section] | None:
    if ("architecture" in entry) == ("pretrained" in entry):
        return None
    return MadeBackbone if "architecture" in entry else PretrainedBackbone


Backbone = Annotated[
    MadeBackbone | PretrainedBackbone,
    t.OneModel(_model, "either `architecture` (a backbone made here) or `pretrained` (a hub id or a folder)"),
]
