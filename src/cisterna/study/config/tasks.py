"""The section `tasks`: a built-in task, a table of the user's own, or published data that an adapter reads."""

import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from cisterna.constants import MALFORMED
from cisterna.study.config import types as t
from cisterna.tasks.catalog import ADAPTERS, divided


def _label(label: str) -> str:
    if label != label.strip() or "<" in label or not label.isprintable():
        raise t.rule("one line without < and without spaces at its ends: answers are parsed strictly")
    if label == MALFORMED:
        raise t.rule(f"another label: tables of results call outputs without an answer {MALFORMED}")
    return label


def _date(value: Any) -> Any:
    """YAML has a type for dates, and JSON has none."""
    return value.isoformat() if isinstance(value, datetime.date) else value


def _check_date(text: str) -> str:
    datetime.datetime.fromisoformat(text)
    return text


Label = Annotated[t.Text, AfterValidator(_label)]
Date = Annotated[
    str, AfterValidator(_check_date), t.Expected("date as in ISO 8601, e.g. 2020-01-31"), BeforeValidator(_date)
]
Group = Annotated[str | int, t.Expected("text or integer")]
Groups = Annotated[
    Annotated[list[Group], t.Some, t.UNIQUE], t.Expected("list of groups to hold out, e.g. [kinase, gpcr]")
]
BySequence = Annotated[
    t.Text | Annotated[dict[str, t.Text], Field(min_length=2)], t.Expected("text, or a mapping of names of sequences")
]
Modalities = Annotated[
    t.Modality | Literal["text"] | Annotated[dict[str, t.Modality], Field(min_length=2)],
    t.Expected("`dna`, `rna`, `protein` or `text`, or a mapping of names of sequences"),
]
SplitColumns = Annotated[
    t.Text | Annotated[list[t.Text], Field(min_length=2), t.UNIQUE], t.Expected("text, or a list of 2 or more columns")
]
UnseenValues = Annotated[dict[str, Groups], Field(min_length=1), t.Expected("mapping of columns to lists of values")]
AdapterName = Literal[tuple(ADAPTERS)]  # type: ignore[valid-type]


class Task(t.Section):
    """Every task."""

    train: t.Rows = t.default(1000, "examples to train on. Asking for more than the table has is an error.")
    validation: t.Count = t.default(150, "examples from train's distribution; only these may choose a model.")
    id: t.Count = t.default(400, "in-domain test examples, from train's distribution.")
    seed: t.Natural = t.default(
        0, "seed of the split. The same for every seed of the study, so that all models see the same data."
    )
    sequences: Annotated[list[t.Form], t.Some, t.UNIQUE, t.LISTED] = t.default(
        ["tokens"],
        "the [forms](#encoders) in which models get the sequences, one or a list. Only `tokens` for tasks "
        "without residues: `cell-type`, and tables with `modality: text`. For `cells`: the cell sentence, "
        "precomputed features of the cell, or both.",
    )
    encoder: Annotated[t.Names, t.ONE_OR_MORE] | None = t.default(
        None, "the encoder, or a list of them; required for `features` and `both`."
    )


class BuiltinTask(Task):
    """A built-in task."""

    ood: t.Count = t.default(400, "out-of-domain test examples.")
    answer_form: t.Flag = t.optional(
        "end each prompt with the form of an answer and the labels, so that a model can answer that was never trained "
        "on it (base models, RL from `cold`).",
        "`false`",
    )


class Columns(t.Section):
    """The columns of a table without groups."""

    id: t.Text = t.optional(
        "unique name of a row. Splits are drawn by it.", "the row's number, so another order of rows changes the splits"
    )
    sequence: BySequence = t.optional(
        "the sequence; for several a mapping of their names in `prompt` to their columns, such as "
        "`{reference: wt, variant: mut}`.",
        "required unless `modality: text`",
    )
    label: t.Text = t.required("the answer, one of `labels`; with `thresholds` a number.")
    reasoning: t.Text = t.optional(
        "reasoning to learn before the answer, a text or a list of texts; without it the model answers at once."
    )
    position: BySequence = t.optional(
        "where the variant is, counted from 1; what `flank` of an encoder is counted from. With several sequences a "
        "mapping too."
    )


class ColumnsWithGroup(Columns):
    """The columns of a table with groups."""

    group: t.Text = t.required("what `ood` holds out: family, assay, cell line, ...")


class Split(t.Section):
    """`split`."""

    by: Annotated[Literal["group", "similarity", "time"], t.Choice] = t.required(
        "whole groups, whole clusters of similar sequences, or the latest rows."
    )
    column: SplitColumns = t.optional(
        "with `group` the column of the groups, with `time` that of the dates. An adapter has an option `group`. With "
        "`group`, a list of columns holds out values of each (unseen gene, unseen drug, both). With `similarity`, "
        "which of several sequences.",
        "required in own table",
    )
    ood: t.Share = t.optional(
        "approximate share of the rows that is out of domain. The actual share is in `card.json`; less than half or "
        "more than twice `ood` is an error.",
        "required without `after`",
    )
    threshold: t.ShareOrAll = t.optional(
        "smallest distance allowed between an out-of-domain and an in-domain sequence.", "required with `similarity`"
    )
    after: Date = t.optional("with `time`, instead of `ood`: rows after this date are out of domain.")


class Table(Task):
    """A table of your own (`file`)."""

    file: t.Path = t.required("your table: `.csv`, `.tsv`, `.parquet` or `.jsonl`.")
    modality: Modalities = t.required(
        "letters that are allowed in the sequence. With several sequences one for all, or a mapping by name. `text`: "
        "prompts without a sequence."
    )
    unusual_letters: t.UnusualLetters = t.optional(t.UNUSUAL_IN_TASKS, t.UNUSUAL_DEFAULT)
    columns: Columns = t.required("which column holds what.")
    labels: Annotated[list[Label], Field(min_length=2), t.UNIQUE] = t.required(
        "the answer space, 2 or more. One line each, without `<`."
    )
    thresholds: Annotated[list[t.Number], t.Some, t.UNIQUE] = t.optional(
        "if the column of the label has numbers, such as a score: where they are cut into the classes `labels`, from "
        "low to high. `[0.5]` with `labels: [low, high]`: below 0.5 is low, 0.5 and above is high."
    )
    question: t.Text = t.optional(
        "opens every prompt; the sequence and the labels follow. For tables with one sequence.",
        "required without `prompt`",
    )
    prompt: t.Text = t.optional(
        "instead of `question`: the whole prompt, with columns of the table in braces. `{sequence}`, or the name of "
        "one of several sequences, is the tagged sequence, which must be there once, and `{options}` the labels; `{{` "
        "is a brace. The columns of label and reasoning are refused."
    )
    conflicts: Annotated[Literal["refuse", "majority", "drop"], t.Choice] = t.optional(
        "what to do with rows that have the same prompt and different labels ([below](#prompts)).", "`refuse`"
    )


class GroupedTable(Table):
    """A table of your own without `split`."""

    columns: ColumnsWithGroup = t.required("as above, and:")
    ood: Groups = t.required("the groups that are held out. All their rows are out-of-domain test examples.")


class UnseenTable(Table):
    """A table of your own that holds out values of several columns (`ood` is a mapping)."""

    ood: UnseenValues = t.required(
        "the values that are held out, by column: `{gene: [TP53, MYC], drug: [aspirin]}`. A row with any of them is "
        "out of domain; its unseen columns name its group in the results."
    )


class SplitTable(Table):
    """A table of your own with `split`."""

    split: Split = t.required("how out-of-domain rows are chosen ([below](#splits)).")
    ood: t.Rows = t.default("all", "out-of-domain test examples.")


class Adapter(Task):
    """Data that an adapter reads (`adapter`)."""

    adapter: Annotated[AdapterName, t.Choice] = t.required(  # type: ignore[valid-type]
        "what reads the data ([below](#adapters))."
    )
    hub: t.Text = t.optional(
        "a data set of the Hugging Face hub, or a folder that `datasets.load_dataset` reads. Not looked up before the "
        "job that reads it.",
        "this or `file`",
    )
    subset: t.Text = t.optional(
        "with `hub`: which configuration of the data set, if it has several (`name` of `datasets.load_dataset`).",
        "the only one",
    )
    revision: t.Text | None = t.optional(
        "commit, tag or branch of the data set; null is the newest.", "`null` with `hub`"
    )
    file: Annotated[list[t.Path], t.Some, t.UNIQUE, t.ONE_OR_MORE] = t.optional(
        "the files of the adapter, one or a list.", "this or `hub`"
    )
    unusual_letters: t.UnusualLetters = t.optional(f"{t.UNUSUAL_IN_TASKS} Not for `cells`.", t.UNUSUAL_DEFAULT)
    options: dict[str, Any] = t.default({}, "options of the adapter ([below](#adapters)).", "the adapter's")

    def filled(self) -> dict[str, Any]:
        """See `Section.filled`."""
        keys = super().filled()
        if "hub" in keys:
            keys.setdefault("revision", None)
        adapter = ADAPTERS[keys["adapter"]]
        keys["options"] = {name: option.default for name, option in adapter.options.items()} | keys["options"]
        return keys


class UnknownAdapter(Adapter):
    """Refused for its name alone: which keys it may have depends on it."""

    model_config = ConfigDict(extra="allow")


class PublishedSplits(Adapter):
    """Data that come with splits."""

    train: t.Rows = t.default("all", "examples to train on.")
    id: t.Rows = t.default("all", "in-domain test examples.")  # type: ignore[assignment]
    ood: t.Rows = t.default("all", "out-of-domain test examples.")


class GroupedData(Adapter):
    """Data of an adapter without splits of their own and without `split`."""

    ood: Groups = t.required("the groups that are held out. All their rows are out-of-domain test examples.")


class UnseenCells(Adapter):
    """Cells of which values of several columns of `obs` are held out (`ood` is a mapping)."""

    ood: UnseenValues = t.required(
        "the values that are held out, by column of `obs`: `{tissue: [lung], disease: [MS]}`. A cell with any of them "
        "is out of domain; its unseen columns name its group in the results."
    )


class SplitData(Adapter):
    """Data of an adapter with `split`."""

    split: Split = t.required("how out-of-domain rows are chosen ([below](#splits)).")
    ood: t.Rows = t.default("all", "out-of-domain test examples.")


def _model(entry: dict[str, Any]) -> type[t.Section]:
    if "adapter" not in entry:
        if "file" not in entry:
            return BuiltinTask
        if "split" in entry:
            return SplitTable
        return UnseenTable if isinstance(entry.get("ood"), dict) else GroupedTable
    adapter = ADAPTERS.get(str(entry["adapter"]))
    if adapter is None:
        return UnknownAdapter
    if adapter.splits and not (adapter.groups and divided(entry)):
        return PublishedSplits
    if "split" in entry:
        return SplitData
    return UnseenCells if entry["adapter"] == "cells" and isinstance(entry.get("ood"), dict) else GroupedData


AnyTask = Annotated[
    BuiltinTask
    | GroupedTable
    | UnseenTable
    | SplitTable
    | UnknownAdapter
    | PublishedSplits
    | GroupedData
    | UnseenCells
    | SplitData,
    t.OneModel(_model, "a mapping"),
]
