"""What the sections of the config share: the base model, and types with the words that errors and tables use.

A key is a field: its annotation is the type, its default is filled in when the key is absent, and its description is
the row of the key tables in config/README.md. A type carries its words (`Expected`), so that "expected an integer >= 1"
in an error and "integer >= 1" in a table have one source.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Union, get_args

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
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError, core_schema
from pydantic_core.core_schema import ValidatorFunctionWrapHandler

from cisterna.study.config import trainer_options

# Names become folders, so they must not look like the folders that Cisterna makes next to them.
RESERVED = {"all", "answers.json", "base", "checkpoint", "cold", "eval", "manifest.json", "none", "perplexity.json"}
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
class ListRule:
    """What else a list type takes or refuses: `check` gets a value and the validator of the list, `schema` its JSON
    schema. `prefix` comes before its words.
    """

    check: Callable[[Any, ValidatorFunctionWrapHandler], Any]
    schema: Callable[[dict[str, Any]], dict[str, Any]]
    prefix: str = ""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_wrap_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return self.schema(handler(schema))


def rule(expected: str) -> PydanticCustomError:
    """The error of a value that breaks a rule of its own, with what was expected in full."""
    return PydanticCustomError("rule", "{expected}", {"expected": expected})


def _one_or_more(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    return check(value) if isinstance(value, list) else check([value])[0]


def _listed(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    return check(value if isinstance(value, list) else [value])


def _all_or_list(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    if value == "all" or isinstance(value, list):
        return value if value == "all" else check(value)
    raise rule("`all` or a list")


def _unique(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    entries = check(value)
    if any(entry in entries[:index] for index, entry in enumerate(entries)):
        raise rule("no entry twice")
    return entries


def _name(name: str) -> str:
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


def _number(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """An integer stays one; 1e-3 without a dot, which YAML 1.1 takes for text, is a number."""
    if isinstance(value, str) and SCIENTIFIC.fullmatch(value):
        value = float(value)
    check(value)
    return value


ONE_OR_MORE = ListRule(_one_or_more, lambda schema: {"anyOf": [schema["items"], schema]})
LISTED = ListRule(_listed, ONE_OR_MORE.schema)  # one entry without the list becomes a list of one
ALL_OR = ListRule(_all_or_list, lambda schema: {"anyOf": [{"const": "all"}, schema]}, prefix="`all` or ")
UNIQUE = ListRule(_unique, lambda schema: schema | {"uniqueItems": True})
Choice = Expected()
Flag = Annotated[bool, Expected("true or false")]
Count = Annotated[int, Field(ge=1), Expected("integer >= 1")]
Natural = Annotated[int, Field(ge=0), Expected("integer >= 0")]
Number = Annotated[float, WrapValidator(_number), Expected("number")]
Positive = Annotated[float, Field(gt=0), WrapValidator(_number), Expected("number > 0")]
Weight = Annotated[float, Field(ge=0), WrapValidator(_number), Expected("number >= 0")]
Share = Annotated[float, Field(gt=0, lt=1), WrapValidator(_number), Expected("number in (0, 1)")]
ShareOrAll = Annotated[float, Field(gt=0, le=1), WrapValidator(_number), Expected("number in (0, 1]")]
BelowOne = Annotated[float, Field(ge=0, lt=1), WrapValidator(_number), Expected("number in [0, 1)")]
Text = Annotated[str, Field(min_length=1), Expected("text")]
Path = Annotated[Annotated[str, Field(min_length=1), Expected("path")], AfterValidator(_path)]
PlainName = Annotated[Annotated[str, Expected("name")], AfterValidator(_name)]
Name = Annotated[PlainName, AfterValidator(_not_reserved)]
Some = Field(min_length=1)
Names = Annotated[list[Annotated[str, Field(min_length=1), Expected("name")]], Some, UNIQUE]
Selection = Annotated[Names, ALL_OR]
Rows = Annotated[Count | Literal["all"], Expected("integer >= 1 or `all`")]
Form = Annotated[Literal["tokens", "features", "both"], Choice]
Dtype = Annotated[Literal["auto", "float32", "bfloat16", "float16"], Choice]
Modality = Annotated[Literal["dna", "rna", "protein"], Choice]
UnusualLetters = Annotated[Literal["refuse", "mask", "keep"], Choice]
UNUSUAL_DEFAULT = "`mask` for protein, `refuse` for dna and rna"
UNUSUAL_IN_TASKS = (
    "what happens to B, J, O, U and Z of proteins, and to the IUPAC codes of dna and rna (such as R): `refuse` names "
    "the row; `mask` reads X or N; `keep` leaves them as they are for encoders, and their residue tokens are those of "
    "X or N. The card counts them. Gaps (`-`, `.`) and stops (`*`) are always refused."
)


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
        keys = {
            field.alias or name: plain(getattr(self, name))
            for name, field in type(self).model_fields.items()
            if name in self.model_fields_set or field.default_factory is not absent
        }
        return keys | plain(self.model_extra or {})

    @classmethod
    def keys(cls) -> dict[str, FieldInfo]:
        """The keys that the model names, as a config spells them, with their fields."""
        return {field.alias or name: field for name, field in cls.model_fields.items()}


class Open(Section):
    """A mapping that also takes options of a library, by their published names (see `trainer_options`)."""

    model_config = ConfigDict(extra="allow")
    # Where library_options.json lists them: the section, and in it the kind of stage (None: the value of `model_type`).
    options_section: ClassVar[str] = "options"
    kind: ClassVar[str | None] = None
    option_defaults: ClassVar[dict[str, Any]] = {}  # options whose default is not the library's

    @model_validator(mode="before")
    @classmethod
    def _read_numbers(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        types = trainer_options.known()[cls.options_section].get(cls.kind or str(values.get("model_type")), {})
        return {
            name: float(value)
            if isinstance(value, str) and SCIENTIFIC.fullmatch(value) and str(types.get(name)).startswith("float")
            else value
            for name, value in values.items()
        }

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Every default, of the options too."""
        return cls.option_defaults | {
            name: plain(field.get_default(call_default_factory=True))
            for name, field in cls.keys().items()
            if not field.is_required() and field.default_factory is not absent
        }

    def filled(self) -> dict[str, Any]:
        """See `Section.filled`."""
        return self.option_defaults | super().filled()


def plain(value: Any) -> Any:
    """Models as dicts, at any depth."""
    if isinstance(value, Section):
        return value.filled()
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class OneModel:
    """On a union of models: which one an entry is. `choose` maps the entry to it, or to None, which is an error.

    Errors have the model in their location, as <NAME>.
    """

    choose: Callable[[dict[str, Any]], type[Section] | None]
    expected: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        def tag(entry: Any) -> str | None:
            model = type(entry) if isinstance(entry, Section) else None
            if isinstance(entry, dict):
                model = self.choose(entry)
            return f"<{model.__name__}>" if model else None

        models: Any = tuple(Annotated[model, Tag(f"<{model.__name__}>")] for model in get_args(source))
        discriminator = Discriminator(tag, custom_error_type="rule", custom_error_message=self.expected)
        return handler.generate_schema(Annotated[Union[models], discriminator])  # noqa: UP007
