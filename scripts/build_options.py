"""Write src/cisterna/study/library_options.json: the options that a recipe may have, with their types.

    python scripts/build_options.py

`cisterna.study.config` has to check a config in less than a second, so it cannot import transformers and trl (8 s of
CPU) to read their options. This script reads them from the installed classes; tests/study/test_config_files.py fails if
the file is out of date.

Types in the file: "bool", "int", "float", "str", with " | null" if None is allowed; a list has all allowed values;
"other" (dicts, lists, mixed unions) is not checked.
"""

import dataclasses
import enum
import json
import types
import typing

from cisterna.study.config.backbones import Architecture
from cisterna.study.config.encoders import EncoderArchitecture
from cisterna.study.config.trainer_options import OPTIONS
from cisterna.study.config.types import Open

# Keys of a transformers config that are bookkeeping, or that Cisterna sets from the tokenizer.
BOOKKEEPING = {
    "architectures",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dtype",
    "eos_token_id",
    "id2label",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "return_dict",
    "transformers_version",
    "use_cache",
    "vocab_size",
}

# Keys that turn an encoder into something else (a decoder, a folding model), or that Cisterna sets from its tokenizer.
UNFIT = {"add_cross_attention", "esmfold_config", "is_decoder", "is_folding_model", "mask_token_id", "vocab_list"}

# Values of keys that the class declares as str. With any other value, a model has no positions, and there is no error.
VALUES: dict[str, str | list[str | None]] = {"position_embedding_type": ["absolute", "rotary"]}


def describe(annotation: object) -> str | list[str | None]:
    """The type of one option, as written in library_options.json."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    members = list(typing.get_args(annotation)) if union else [annotation]
    nullable = type(None) in members
    members = [member for member in members if member is not type(None)]
    enums = [member for member in members if isinstance(member, type) and issubclass(member, enum.Enum)]
    if len(enums) == 1 and set(members) <= {enums[0], str}:
        return [str(item.value) for item in enums[0]] + ([None] if nullable else [])
    if len(members) == 1 and typing.get_origin(members[0]) is typing.Literal:
        values = list(typing.get_args(members[0]))
        return values + ([None] if nullable else [])
    if set(members) == {int, float}:
        members = [float]
    if len(members) == 1 and members[0] in (bool, int, float, str):
        return members[0].__name__ + (" | null" if nullable else "")
    return "other"


def options(cls: type) -> dict[str, str | list[str | None]]:
    """Public constructor options of a dataclass, by name."""
    import torch  # some annotations name it, and transformers imports it only for type checkers

    hints = typing.get_type_hints(cls, localns={"torch": torch})
    fields = [field for field in dataclasses.fields(cls) if field.init and field.name[0] != "_"]
    return {field.name: describe(hints[field.name]) for field in sorted(fields, key=lambda field: field.name)}


def build() -> str:
    """The text of library_options.json for the installed transformers and trl."""
    import transformers
    import trl

    def keys(model: type[Open], unfit: set[str]) -> dict[str, dict[str, str | list[str | None]]]:
        known = {
            name: options(transformers.CONFIG_MAPPING[name])
            for name in typing.get_args(model.model_fields["model_type"].annotation)
        }
        return {
            name: {key: VALUES.get(key, kind) for key, kind in kinds.items() if key not in unfit}
            for name, kinds in known.items()
        }

    content = {
        "versions": {"transformers": transformers.__version__, "trl": trl.__version__},
        "classes": {"cpt": "transformers.TrainingArguments", "sft": "trl.SFTConfig", "rl": "trl.GRPOConfig"},
        "options": {
            "cpt": options(transformers.TrainingArguments),
            "sft": options(trl.SFTConfig),
            "rl": options(trl.GRPOConfig),
        },
        "architectures": keys(Architecture, BOOKKEEPING),
        "encoders": keys(EncoderArchitecture, BOOKKEEPING | UNFIT),
    }
    return json.dumps(content, indent=1) + "\n"


if __name__ == "__main__":
    OPTIONS.write_text(build())
    print(f"wrote {OPTIONS}")
