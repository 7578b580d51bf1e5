"""What the sections of the config share: the base model, and types with the words that errors and tables use.

A key is a field: its annotation is the type, its default is filled in when the key is absent, and its description is
the row of the key tables in config/README.md. A type carries its words (`Expected`), so that "expected an integer >= 1"
in an error and "integer >= 1" in a table have one source.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Tag,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError, core_schema

# Names become folders, so they must not look like the folders that Cisterna makes next to them.
RESERVED = {"all", "base", "checkpoint", "cold", "eval", "manifest.json", "none", "perplexity.json"}
NAME_RULE = (
    'a name of at most 64 lower-case letters, digits, "." and "-", starting with a letter or digit, without ".."'
)
PATH_RULE = "a path without braces, < and >, line breaks and other control characters, not starting with -"
SCIENTIFIC = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


@dataclass(frozen=True)
class Expected:
    """A type in words, or the values of a Literal. Whatever is wrong with a value of the type, the error says these."""

    words: str = ""

    def describe(self, annotation: Any) -> str:
        """The words for the annotated type."""
        if self.words:
            return self.words
        *names, last = (f"`{name}`" for name in get_args(annotation))
        return f"{', '.join(names)} or {last}" if names else last

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        words = self.describe(source)
        return core_schema.custom_error_schema(
            handler(source), custom_error_type="expected", custom_error_message=words
        )


@dataclass(frozen=True)
class OneOrMore:
    """On a list type: one entry may be written without the list. `listed`: it becomes a list of one."""

    listed: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        def check(value: Any, inner: core_schema.ValidatorFunctionWrapHandler) -> Any:
            entries = inner(value if isinstance(value, list) else [value])
            return entries if self.listed or isinstance(value, list) else entries[0]

        return core_schema.no_info_wrap_validator_function(check, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        several = handler(schema)
        return {"anyOf": [several["items"], several]}


class AllOr:
    """On a list type: the word `all` is allowed too."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        def check(value: Any, inner: core_schema.ValidatorFunctionWrapHandler) -> Any:
            if isinstance(value, list):
                return inner(value)
            if value == "all":
                return value
            raise rule("`all` or a list")

        return core_schema.no_info_wrap_validator_function(check, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"const": "all"}, handler(schema)]}


class Unique:
    """On a list type: no entry is there twice."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        def check(entries: list[Any]) -> list[Any]:
            if any(entry in entries[:index] for index, entry in enumerate(entries)):
                raise rule("no entry twice")
            return entries

        return core_schema.no_info_after_validator_function(check, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return handler(schema) | {"uniqueItems": True}


def rule(expected: str) -> PydanticCustomError:
    """The error of a value that breaks a rule of its own, with what was expected in full."""
    return PydanticCustomError("rule", "{expected}", {"expected": expected})


def _spelled(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,63}", name) or ".." in name:
        raise rule(NAME_RULE)
    return name


def _not_reserved(name: str) -> str:
    if name in RESERVED:
        raise rule("another name: this one is a folder or a word that Cisterna uses itself")
    return name


def is_path(path: str) -> bool:
    """Whether Snakemake takes a path as it is: braces are wildcards there, and its report is a web page."""
    return path.isprintable() and not set("{}<>") & set(path) and not path.startswith("-")


def _path(path: str) -> str:
    if not is_path(path):
        raise rule(PATH_RULE)
    return path


def _number(value: Any, check: Any) -> Any:
    """Keep an integer as it is; read 1e-3 without a dot, which YAML 1.1 takes for text, as a number."""
    if isinstance(value, str) and SCIENTIFIC.fullmatch(value):
        value = float(value)
    check(value)
    return value


Choice = Expected()
Flag = Annotated[bool, Expected("true or false")]
Count = Annotated[int, Field(ge=1), Expected("integer >= 1")]
Natural = Annotated[int, Field(ge=0), Expected("integer >= 0")]
Positive = Annotated[float, Field(gt=0), WrapValidator(_number), Expected("number > 0")]
Weight = Annotated[float, Field(ge=0), WrapValidator(_number), Expected("number >= 0")]
Share = Annotated[float, Field(gt=0, lt=1), WrapValidator(_number), Expected("number in (0, 1)")]
ShareOrAll = Annotated[float, Field(gt=0, le=1), WrapValidator(_number), Expected("number in (0, 1]")]
BelowOne = Annotated[float, Field(ge=0, lt=1), WrapValidator(_number), Expected("number in [0, 1)")]
Text = Annotated[str, Field(min_length=1), Expected("text")]
Path = Annotated[Annotated[str, Field(min_length=1), Expected("path")], AfterValidator(_path)]
PlainName = Annotated[Annotated[str, Expected("name")], AfterValidator(_spelled)]
Name = Annotated[PlainName, AfterValidator(_not_reserved)]
Some = Field(min_length=1)
Names = Annotated[list[Annotated[str, Field(min_length=1), Expected("name")]], Some, Unique()]
Selection = Annotated[Names, AllOr()]
Rows = Annotated[Count | Literal["all"], Expected("integer >= 1 or `all`")]
Form = Annotated[Literal["tokens", "features", "both"], Choice]
Dtype = Annotated[Literal["auto", "float32", "bfloat16", "float16"], Choice]
Modality = Annotated[Literal["dna", "rna", "protein"], Choice]


def absent() -> None:
    """The value of an optional key that is not in the config. Such a key is not filled in."""


def required(effect: str, shown: str = "required") -> Any:
    """A key that must be there; `shown` is the cell of its default in the key table."""
    return Field(description=effect, json_schema_extra={"shown": shown})


def optional(effect: str, shown: str = "", alias: str | None = None) -> Any:
    """A key that is not filled in where it is absent."""
    return Field(default_factory=absent, description=effect, json_schema_extra={"shown": shown}, alias=alias)


def default(value: Any, effect: str, shown: str | None = None) -> Any:
    """A key with a default: a value, or what makes one."""
    extra: Any = None if shown is None else {"shown": shown}
    if callable(value):
        return Field(default_factory=value, description=effect, json_schema_extra=extra)
    return Field(value, description=effect, json_schema_extra=extra)


class Section(BaseModel):
    """A mapping of the config."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )

    def filled(self) -> dict[str, Any]:
        """Plain dicts and lists: the keys of the config and every default."""
        fields = type(self).model_fields
        keys = {
            field.alias or name: plain(getattr(self, name))
            for name, field in fields.items()
            if name in self.model_fields_set or field.default_factory is not absent
        }
        return keys | plain(self.model_extra or {})

    @classmethod
    def what(cls) -> str:
        """The model in words, from its docstring, for errors and tables."""
        text = (cls.__doc__ or "").partition("\n")[0].rstrip(".")
        return text[:1].lower() + text[1:]

    @classmethod
    def keys(cls) -> list[str]:
        """The keys that the model names, as a config spells them."""
        return [field.alias or name for name, field in cls.model_fields.items()]


class Open(Section):
    """A mapping that also takes options of a library, by their published names (`cisterna.study.config.library`)."""

    model_config = ConfigDict(extra="allow")
    library_defaults: ClassVar[dict[str, Any]] = {}  # options whose default is not the library's

    @classmethod
    def options(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Name -> type of the library's options; `values` are the keys of the mapping."""
        raise NotImplementedError

    @model_validator(mode="before")
    @classmethod
    def _read_numbers(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        types = cls.options(values)
        return {
            name: float(value)
            if isinstance(value, str) and SCIENTIFIC.fullmatch(value) and str(types.get(name)).startswith("float")
            else value
            for name, value in values.items()
        }

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Every default, of the options too."""
        fields = {field.alias or name: field for name, field in cls.model_fields.items()}
        return cls.library_defaults | {
            name: plain(field.get_default(call_default_factory=True))
            for name, field in fields.items()
            if not field.is_required() and field.default_factory is not absent
        }

    def filled(self) -> dict[str, Any]:
        """See `Section.filled`."""
        return self.library_defaults | super().filled()


def plain(value: Any) -> Any:
    """Models as dicts, at any depth."""
    if isinstance(value, Section):
        return value.filled()
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, list) else value


def tag(model: type[Section]) -> Tag:
    """Marks a model as one of several that an entry may be. Errors have the tag in their location."""
    return Tag(f"<{model.__name__}>")


def choose(model: Any, expected: str) -> Discriminator:
    """Which of several models an entry is: `model` maps the entry to one of them, or None, which is an error."""

    def pick(entry: Any) -> str | None:
        chosen = type(entry) if isinstance(entry, Section) else model(entry) if isinstance(entry, dict) else None
        return f"<{chosen.__name__}>" if chosen else None

    return Discriminator(pick, custom_error_type="rule", custom_error_message=expected)
