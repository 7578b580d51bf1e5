"""The section `encoders`: whose features a backbone reads. Models of sequences, or features from elsewhere."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from cisterna.study.config import types as t

Letter = Annotated[str, Field(pattern="^[A-Z]$"), t.Expected("one upper-case letter")]


class EncoderArchitecture(t.Open):
    """Keys of a transformers config."""

    options_section: ClassVar = "encoders"

    model_type: Annotated[Literal["esm"], t.Choice] = t.required("the architecture.")


class EncoderTraining(t.Open):
    """The training of an encoder."""

    kind: ClassVar = "cpt"
    option_defaults: ClassVar = {"num_train_epochs": 1.0}

    corpora: t.Names = t.required("the corpora it is trained on. Sequences only: a corpus of text is an error.")
    block_size: t.Count = t.default(256, "residues of a training sequence; longer documents are cut into several.")
    mlm_probability: t.Share = t.default(0.15, "share of the residues that are to be predicted.")
    seed: t.Natural = t.default(
        0, "seed of the initial weights, the masks and the order. An encoder is shared by all seeds of the study."
    )
    save_minutes: t.Positive = t.default(
        10.0, "minutes between saves of the state from which a killed training resumes."
    )


class Reading(t.Section):
    """Any encoder: how its features are read."""

    layer: Annotated[int | t.Text, t.Expected("integer or text")] = t.default(
        -1,
        "which hidden state: 0 the embeddings, 1 the first layer, -1 the last; or the name of a module, whose output "
        "it is (`blocks.20.mlp.l3`).",
    )
    pool: t.Count | None = t.default(
        None, "one row of features is the mean of this many residues; null is one row a residue."
    )
    flank: t.Count = t.default(1024, "residues that are kept on each side of the variant.")
    letters: dict[Letter, Letter] = t.default(
        {}, "upper-case letters that are replaced before the encoder reads, such as `{U: T}` for RNA in a model of DNA."
    )
    storage: Annotated[Literal["float16", "bfloat16"], t.Choice] = t.default(
        "float16", "type of the features on disk; with `bank: false` they are rounded to it too."
    )
    batch_tokens: t.Count = t.default(4096, "residues in one batch of the encoder.")
    bank: t.Flag = t.default(True, "compute the features once and keep them; false runs the encoder inside each step.")
    trained: t.Flag = t.default(
        False,
        "train the encoder with what the recipe trains (its adapter, or all weights). Needs `bank: false` and "
        "`package: transformers`.",
    )


class MadeEncoder(Reading):
    """An encoder made here (`architecture`)."""

    architecture: EncoderArchitecture = t.required(
        "keys of the transformers config of `model_type`, by their names. The vocabulary is the residues of all three "
        "modalities."
    )
    training: EncoderTraining = t.required(
        "the keys below, and any option of `transformers.TrainingArguments` as in a `cpt` recipe, `num_train_epochs` "
        "(default `1.0`) among them."
    )


class PretrainedEncoder(Reading):
    """A pretrained encoder (`pretrained`)."""

    pretrained: t.Text = t.required(
        "hub id (`facebook/esm2_t30_150M_UR50D`) or local folder; for `evo2` and `esm` the name that the package "
        "knows, or a local folder."
    )
    revision: t.Text | None = t.default(
        None, "commit, tag or branch on the hub; null is the newest. Required with `trust_remote_code: true`."
    )
    trust_remote_code: t.Flag = t.default(False, "run the code that comes with the model, for this one model.")
    package: Annotated[Literal["transformers", "evo2", "esm"], t.Choice] = t.default(
        "transformers", "what loads it. `evo2` and `esm` have to be installed."
    )
    dtype: t.Dtype = t.default("float32", "type of the loaded weights.")
    random_weights: t.Flag = t.optional(
        "draw all weights anew, as a control: the same network with nothing learned. With `package: transformers`.",
        "`false`",
    )


class CellEncoder(t.Section):
    """A pretrained encoder of cells (`package: transcriptformer`)."""

    pretrained: t.Text = t.required(
        "a folder as `transcriptformer download` makes it, with `config.json`, `model_weights.pt` and `vocabs/`."
    )
    package: Annotated[Literal["transcriptformer"], t.Choice] = t.required(
        "what loads it; it has to be installed ([how](../docs/encoders.md#transcriptformer)). It reads the counts in "
        "the `.h5ad` file of the task."
    )
    counts: t.Text | None = t.default(
        None, "layer of the file with the raw counts; null is `raw.X`, or X where there is none."
    )
    genes: t.Text | None = t.default(
        None,
        "column of `var` with the Ensembl ids of the genes; null is `ensembl_id`, `gene_ids`, `feature_id` or the "
        "index, the first that there is.",
    )
    dtype: Annotated[Literal["auto", "float32"], t.Choice] = t.default(
        "auto", "`auto` is mixed precision on a GPU, as in the package, and float32 on a CPU."
    )
    batch_size: t.Count = t.default(8, "cells in one batch.")
    per: Annotated[Literal["example"], t.Choice] = t.default("example", "one row of features a cell.")
    storage: Annotated[Literal["float32", "float16", "bfloat16"], t.Choice] = t.default(
        "float32", "type of the features in the feature bank."
    )


class PrecomputedFeatures(t.Section):
    """Precomputed features (`features`)."""

    features: Annotated[list[t.Path], t.Some, t.UNIQUE, t.LISTED] = t.required(
        "files with features that were computed elsewhere, one or a list: `.h5ad`, `.parquet`, `.npz`, `.safetensors` "
        "or `.h5`. They belong to the examples by their ids ([how](../docs/encoders.md#precomputed-features))."
    )
    key: t.Text | None = t.default(
        None,
        "where they are: the key of `obsm`, the column (of lists) of a Parquet file, the array of an `.npz` file; null "
        "is the only one there is.",
    )
    ids: t.Text | None = t.default(
        None,
        "where the ids are: a column of `obs` (null is `obs_names`), a column of a Parquet file (null is `id`), an "
        "array of an `.npz` file (null is `ids`).",
    )
    per: Annotated[Literal["example", "residue"], t.Choice] = t.default(
        "example",
        "`example`: one row of features for each id, or several. `residue`: one row for each residue of its sequence.",
    )
    pool: t.Count | None = t.default(
        None, "with `per: residue`: one row is the mean of this many residues; null is one row a residue."
    )
    storage: Annotated[Literal["float32", "float16", "bfloat16"], t.Choice] = t.default(
        "float32", "type of the features in the feature bank."
    )


def _model(entry: dict[str, Any]) -> type[t.Section] | None:
    kinds: dict[str, type[t.Section]] = {
        "architecture": MadeEncoder,
        "pretrained": PretrainedEncoder,
        "features": PrecomputedFeatures,
    }
    if entry.get("package") == "transcriptformer":
        kinds["pretrained"] = CellEncoder
    named = [model for key, model in kinds.items() if key in entry]
    return named[0] if len(named) == 1 else None


Encoder = Annotated[
    MadeEncoder | PretrainedEncoder | CellEncoder | PrecomputedFeatures,
    t.OneModel(
        _model,
        "either `architecture` and `training` (an encoder made here), or `pretrained`, or `features` (computed "
        "elsewhere)",
    ),
]
