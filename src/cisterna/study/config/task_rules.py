"""The rules of `tasks` that need more than one key: columns and prompts, splits, options of adapters, forms."""

import string
from collections.abc import Mapping, Sequence
from typing import Any

from cisterna.study.config import trainer_options
from cisterna.study.config.problems import Key, Problems, check_either, one_of, suggest
from cisterna.study.config.types import PATH_RULE, is_path
from cisterna.study.lineages import encoders_of
from cisterna.tasks import catalog, unseen
from cisterna.tasks.catalog import ADAPTERS
from cisterna.tasks.catalog import LABELS as BUILTIN

POOLED = (
    "`ood` or `split` would divide the rows of all of them; expected files of train and ood, or train, id and ood, "
    "without these keys, or `options: {pool: true}`"
)

BY = "similarity"  # the way to split that needs no groups


def check(key: Key, name: str, task: dict[str, Any], problems: Problems) -> None:
    """Add what is wrong with a task, but for its forms."""
    own = "adapter" in task or "file" in task
    if own and name in BUILTIN:
        problems.add(key, "the name of a built-in task; expected another name for data of your own")
    elif not own and name not in BUILTIN:
        names = ", ".join(BUILTIN)
        expected = f"a built-in task ({names}), or the key `file` with a table of your own, or the key `adapter`"
        problems.add(key, f"no such task; expected {expected}{suggest(name, BUILTIN)}")
    elif "adapter" in task:
        _check_adapter(key, task, ADAPTERS[task["adapter"]], problems)
    elif own:
        if ("question" in task) == ("prompt" in task):
            name, state = ("prompt", "both are there") if "prompt" in task else ("question", "missing")
            problems.add((*key, name), f"{state}; expected one of question and prompt (a whole template)")
        _check_thresholds((*key, "thresholds"), task, problems)
        sequences = _check_sequences(key, task, problems)
        if "prompt" in task:
            _check_template((*key, "prompt"), task["prompt"], task["columns"], sequences, problems)
        _check_split((*key, "split"), task.get("split"), ("column",), problems, sequences)


def _check_adapter(key: Key, task: dict[str, Any], adapter: catalog.Adapter, problems: Problems) -> None:
    counts = " or ".join(map(str, adapter.files)) or "1 or more"
    if not adapter.hub and "hub" in task:
        problems.add((*key, "hub"), f"`hub` is not supported by the adapter {task['adapter']}")
    if not adapter.hub and "file" not in task:
        problems.missing((*key, "file"), f"the path of the data ({counts})")
    if adapter.hub:
        expected = f"`file` ({counts}), or `hub`, a data set of the Hugging Face hub"
        check_either(key, task, "file", "hub", expected, problems)
    for name in ("revision", "subset"):
        if name in task and "hub" not in task:
            problems.add((*key, name), "not supported without `hub`")
    if "unusual_letters" in task and not adapter.residues:
        problems.add((*key, "unusual_letters"), f"not supported by the adapter {task['adapter']}: it has no residues")
    files = task.get("file", [])
    count = len(files) if isinstance(files, list) else 1
    if count and adapter.files and count not in adapter.files:
        problems.add((*key, "file"), f"{count} files; expected {counts}")
    if count > 1 and adapter.splits and catalog.divided(task) and not task["options"].get("pool"):
        problems.add((*key, "file"), f"{count} files, and {POOLED}")
    # A group's column is an option of the adapter (`group`).
    several = catalog.cells(task) and bool(unseen.columns(task))
    _check_split((*key, "split"), task.get("split"), ("column",) if several and "split" in task else (), problems)
    options = task["options"]
    if several and options["group"] is not None:
        expected = "null: `ood` or `split.column` names the columns that are held out"
        problems.expected((*key, "options", "group"), options["group"], expected)
    elif catalog.cells(task) and not several and options["group"] is None and task.get("split", {}).get("by") != BY:
        problems.missing((*key, "options", "group"), "the column of `obs` with the groups that are held out")
    types = {name: option.kind for name, option in adapter.options.items()}
    given = {name: value for name, value in options.items() if value is not catalog.REQUIRED}
    source = f"an option of this adapter ({', '.join(types) or 'it has none'})"
    trainer_options.check((*key, "options"), given, types, source, problems)
    for name, option in adapter.options.items():
        value, place = options[name], (*key, "options", name)
        if value is catalog.REQUIRED:
            problems.add(place, f"missing; required: {option.meaning}")
        elif not trainer_options.fits(option.kind, value) or value is None:
            continue
        elif option.least is not None and value < option.least:
            problems.expected(place, value, f"a number >= {option.least}")
        elif option.kind == "str" and not value:
            problems.expected(place, value, "a text")
        elif isinstance(value, str) and not is_path(value):
            problems.expected(place, value, PATH_RULE)


def _check_thresholds(key: Key, task: dict[str, Any], problems: Problems) -> None:
    """The cuts of a score into classes: one fewer than these, from low to high."""
    thresholds = task.get("thresholds")
    if thresholds is None:
        return
    if len(thresholds) != len(task["labels"]) - 1:
        expected = f"{len(task['labels']) - 1}, between the {len(task['labels'])} labels"
        problems.add(key, f"{len(thresholds)} thresholds; expected {expected}")
    if thresholds != sorted(thresholds):
        problems.expected(key, thresholds, "numbers from low to high")


def _check_sequences(key: Key, task: dict[str, Any], problems: Problems) -> list[str]:
    """The columns, positions and modalities of the sequences of a table; returns the names of the sequences."""
    columns, modality = task["columns"], task["modality"]
    names = list(catalog.sequences(task))
    several = isinstance(columns.get("sequence"), dict)
    if modality == "text" and names:
        problems.add((*key, "modality"), "text, but `columns` names a sequence; expected dna, rna or protein")
    elif modality != "text" and not names:
        expected = "the column of the sequence, or `modality: text` for prompts without one"
        problems.missing((*key, "columns", "sequence"), expected)
    for place, entry, whole in (
        (("modality",), modality, True),
        (("columns", "position"), columns.get("position"), False),
    ):
        if isinstance(entry, dict) and not several:
            problems.add((*key, *place), "a mapping; expected one, or several sequences in `columns.sequence`")
        elif isinstance(entry, dict):
            for name in entry:
                if name not in names:
                    problems.unknown((*key, *place, name), one_of(names), names)
            for name in names if whole else ():
                if name not in entry:
                    problems.missing((*key, *place, name), "the modality of this sequence")
        elif several and entry is not None and not whole:
            problems.expected((*key, *place), entry, "a mapping of names of sequences to columns")
    if "unusual_letters" in task and not names:
        problems.add((*key, "unusual_letters"), "not supported without a sequence")
    if "question" in task and (several or modality == "text"):
        problems.add((*key, "question"), "not supported without one sequence; expected prompt, with columns in braces")
    return names


def _check_template(key: Key, template: str, columns: dict[str, Any], sequences: list[str], problems: Problems) -> None:
    """A prompt with names of columns in braces: only names, each sequence once, and not the answer."""
    try:
        fields = [field for field in string.Formatter().parse(template) if field[1] is not None]
    except ValueError as error:
        problems.add(key, f"cannot be read ({error}); expected names of columns in braces, and {{{{ for a brace")
        return
    names = [name for _, name, _, _ in fields]
    for _, name, form, conversion in fields:
        if not name or form or conversion or set(name) & set(".[]") or name.isdigit():
            problems.add(key, f"more than a name in the field {name!r}; expected names of columns in braces")
    for name in sequences:
        if names.count(name) != 1:
            problems.add(key, f"{{{name}}} is there {names.count(name)} times; expected once")
    if not sequences and not set(names) - {"options"}:
        problems.add(key, "the same for every row; expected columns of the table in braces")
    for role in ("label", "reasoning"):
        if columns.get(role) in names and columns[role] not in (*sequences, "options"):
            problems.add(key, f"{{{columns[role]}}} is the column of the {role}, which would give the answer away")


def _check_split(
    key: Key,
    split: dict[str, Any] | None,
    column: tuple[str, ...],
    problems: Problems,
    sequences: Sequence[str] = ("sequence",),
) -> None:
    """How OOD rows are chosen: the keys that each way needs, and those that it does not have."""
    if split is None:
        return
    way = split["by"]
    several = len(sequences) > 1
    needs = {"group": column, "time": column, "similarity": ("threshold", *(("column",) if several else ()))}[way]
    if way == "similarity" and not sequences:
        problems.expected((*key, "by"), way, "group or time: the prompts have no sequences")
    elif way == "similarity" and several and "column" in split and split["column"] not in sequences:
        problems.expected((*key, "column"), split["column"], one_of(sequences))
    elif way == "time" and isinstance(split.get("column"), list):
        problems.expected((*key, "column"), split["column"], "one column of dates")
    for name in needs:
        if name not in split:
            problems.add((*key, name), f"missing; `by: {way}` needs it")
    for name in ("column", "threshold", "after"):
        if name in split and name not in needs and (name, way) != ("after", "time"):
            problems.add((*key, name), f"not supported here with `by: {way}`")
    if way != "time" and "ood" not in split:
        problems.missing((*key, "ood"), "the share of the rows that is held out, e.g. 0.2")
    elif way == "time":
        expected = "ood (the share of the latest rows) or after (a date)"
        check_either(key, split, "ood", "after", expected, problems)


def check_forms(
    key: Key,
    name: str,
    task: dict[str, Any],
    names: Mapping[str, list[str]],
    encoders: Mapping[str, dict[str, Any]],
    problems: Problems,
) -> None:
    """A task's forms, and the encoder that they need."""
    for index, encoder in enumerate(encoders_of(task)):
        if encoder not in names["encoders"]:
            place = (*key, "encoder", index) if isinstance(task["encoder"], list) else (*key, "encoder")
            problems.expected(place, encoder, one_of(names["encoders"]), names["encoders"])
        elif catalog.cells(task) and encoders.get(encoder, {"per": "example"}).get("per") != "example":
            expected = "an encoder of cells: `package: transcriptformer`, or `features` with `per: example`"
            problems.expected((*key, "encoder"), encoder, expected)
        elif not catalog.cells(task) and "batch_size" in encoders.get(encoder, {}):
            problems.expected((*key, "encoder"), encoder, "one that reads sequences: this one reads cells")
    if catalog.cells(task) and "features" in task["sequences"] and task["options"].get("reasoning") == "genes":
        expected = "null, or a column of `obs`: models of the form features see no genes that they could name"
        problems.expected((*key, "options", "reasoning"), "genes", expected)
    forms = " and ".join(form for form in task["sequences"] if form != "tokens")
    if forms and not catalog.residues(name, task) and not catalog.cells(task):
        kinds = sorted(set(catalog.sequences(task).values())) if "file" in task and "adapter" not in task else []
        reason = f"an encoder reads one modality, not {' and '.join(kinds)}" if len(kinds) > 1 else ""
        reason = reason or "the task has no residues for an encoder to read"
        problems.expected((*key, "sequences"), forms, f"tokens: {reason}")
    elif forms and task["encoder"] is None:
        problems.missing((*key, "encoder"), f"a name of `encoders` for {forms}")
