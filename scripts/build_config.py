"""Write the key tables and the JSON schema that are generated from the config's models (src/cisterna/study/config).

    python scripts/build_config.py

The tables are the parts of config/README.md between `<!-- keys: NAME -->` and `<!-- end -->`; the schema is
workflow/schemas/config.schema.yaml, for editors. tests/study/test_config_files.py fails if they are out of date.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from cisterna.study.config import backbones, encoders, recipes, shape, tasks
from cisterna.study.config.types import Section, plain
from cisterna.tasks.catalog import ADAPTERS, REQUIRED, Option

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "config" / "README.md"
SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.yaml"
RULE = "| --- | --- | --- | --- |\n"
# Sections whose entries can have different models: each model gets a table of its own keys, in this order.
MODELS: dict[str, list[type[Section]]] = {
    "backbones": [backbones.MadeBackbone, backbones.PretrainedBackbone],
    "encoders": [
        encoders.Reading,
        encoders.MadeEncoder,
        encoders.PretrainedEncoder,
        encoders.CellEncoder,
        encoders.PrecomputedFeatures,
    ],
    "tasks": [
        tasks.Task,
        tasks.BuiltinTask,
        tasks.Table,
        tasks.GroupedTable,
        tasks.UnseenTable,
        tasks.SplitTable,
        tasks.Adapter,
        tasks.PublishedSplits,
        tasks.GroupedData,
        tasks.UnseenCells,
        tasks.SplitData,
    ],
}


def tables() -> dict[str, str]:
    """The tables of config/README.md, by name."""
    top = {name: list(_rows(shape.Config, only=name)) for name in shape.Config.model_fields}
    made = {name: _table(rows) for name, rows in top.items()}
    made["study"] = _table(top["study"] + top["seeds"])
    for section, models in MODELS.items():
        made[section] = _table(top[section][:1])
        seen: set[str] = set()  # rows of nested keys, which are not repeated
        for model in models:
            rows = [row for row in _rows(model, f"{section}.NAME", own=True) if row not in seen]
            seen |= {row for row in rows if row.split("`")[1].count(".") > 2}
            made[section] += f"\n**{(model.__doc__ or '').partition(chr(10))[0]}**\n\n{_table(rows)}"
    made["recipes"] = _table([*top["recipes"][:1], *_rows(recipes.Recipe, "recipes.STAGE.NAME")])
    for stage, field in recipes.Recipes.model_fields.items():
        model = get_args(field.annotation)[-1]
        made[stage] = _table([_row(f"recipes.{stage}", field), *_rows(model, f"recipes.{stage}.NAME", own=True)])
    shared: dict[tuple[str, str], tuple[Option, list[str]]] = {}  # options that adapters share have one row
    for name, adapter in ADAPTERS.items():
        for option, entry in adapter.options.items():
            shared.setdefault((option, repr(entry)), (entry, []))[1].append(name)
    made["adapters"] = f"| option of | name | default | effect |\n{RULE}" + "".join(
        f"| {'all' if len(names) == len(ADAPTERS) else ', '.join(names)} | `{option}` | {_default(entry)} | "
        f"{entry.meaning}. |\n"
        for (option, _), (entry, names) in shared.items()
    )
    return made


def _default(option: Option) -> str:
    return "required" if option.default is REQUIRED else json.dumps(option.default).strip('"')


def _table(rows: list[str]) -> str:
    return f"| key | type | default | effect |\n{RULE}" + "".join(f"{row}\n" for row in dict.fromkeys(rows))


def _rows(model: type[Section], prefix: str = "", only: str | None = None, own: bool = False) -> Iterator[str]:
    """A row for each key of a model, each followed by the rows of the models nested in it.

    `only`: take only this key. `own`: take only keys that the model itself defines, without inherited ones.
    """
    for name, field in model.model_fields.items():
        if only in (None, name) and (not own or name in model.__annotations__):
            key = f"{prefix}.{field.alias or name}".lstrip(".")
            yield _row(key, field)
            for suffix, inner in _inside(field.annotation):
                yield from _rows(inner, key + suffix)


def _inside(annotation: Any, suffix: str = "") -> Iterator[tuple[str, type[Section]]]:
    """The models in a type, each with the suffix of its keys: .NAME, [] or nothing."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield suffix, annotation
    else:
        name = ".JOB" if annotation == shape.Config.model_fields["resources"].annotation else ".NAME"
        part = {dict: name, list: "[]"}.get(get_origin(annotation), "")
        for argument in get_args(annotation):
            yield from _inside(argument, suffix + part)


def _row(key: str, field: FieldInfo) -> str:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    default = extra.get("shown")
    if default is None:
        value = plain(field.get_default(call_default_factory=True))
        default = yaml.safe_dump(value, default_flow_style=True, width=999).removesuffix("...\n").strip()
        default = f"`{default}`"
    cells = (f"`{key}`", shape.words(field.annotation, field.metadata), default, field.description)
    return f"| {' | '.join(map(str, cells))} |".replace("|  |", "| |")


def readme() -> str:
    """config/README.md with new tables."""
    made = tables()
    pattern = r"(<!-- keys: (\w+) -->\n\n).*?(\n<!-- end -->)"
    replace = lambda match: match[1] + made[match[2]] + match[3]  # noqa: E731
    return re.sub(pattern, replace, README.read_text(), flags=re.DOTALL)


def schema() -> str:
    """The JSON schema of a config, as YAML with one line for each model and key."""
    lines = ["# Made by scripts/build_config.py from the models in src/cisterna/study/config. For editors."]
    for name, value in _tidy(shape.Config.model_json_schema()).items():
        if isinstance(value, dict):
            lines += [f"{name}:", *(f"  {key}: {json.dumps(entry)}" for key, entry in value.items())]
        else:
            lines.append(f"{name}: {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def _tidy(value: Any, names: bool = False) -> Any:
    """A schema without titles, which repeat the keys, and without what only the tables use.

    `oneOf` becomes `anyOf`, because the schema does not say how a model is chosen, and an entry may match several.
    `names`: the keys of the mapping are names of models or keys of the config.
    """
    if isinstance(value, dict):
        unused = ("UnknownAdapter",) if names else ("title", "shown")
        return {
            "anyOf" if name == "oneOf" else name: _tidy(entry, names=name in ("properties", "$defs") and not names)
            for name, entry in value.items()
            if name not in unused
        }
    if isinstance(value, list):
        return [_tidy(entry) for entry in value if entry != {"$ref": "#/$defs/UnknownAdapter"}]
    return value


if __name__ == "__main__":
    README.write_text(readme())
    SCHEMA.write_text(schema())
    print(f"wrote {README} and {SCHEMA}")
