"""The section `corpora`: sequences or text for continued pre-training and for encoders."""

from typing import Annotated, Literal

from cisterna.study.config import types as t


class Corpus(t.Section):
    """A corpus."""

    file: t.Path = t.required("a file in one of the forms below.")
    modality: Annotated[Literal["dna", "rna", "protein", "text"], t.Choice] = t.required(
        "letters that are allowed, and residue tokens."
    )
    unusual_letters: Annotated[Literal["refuse", "mask"], t.Choice] = t.optional(
        "of sequences: whether B, J, O, U and Z of proteins and the IUPAC codes of dna and rna (such as R) are "
        "refused, naming the record, or read as X or N, and counted in the card. Gaps (`-`, `.`) and stops (`*`) are "
        "always refused.",
        t.UNUSUAL_DEFAULT,
    )
    field: t.Text = t.optional("of JSON lines: the key that holds the document.", "text")
    skip_documents: t.Count = t.optional("number of documents to leave out at the start of the file.", "none")
    train_documents: t.Count = t.optional("train on this many documents, from the first on.", "all")
    heldout_documents: t.Count = t.optional("measure perplexity on this many held-out documents.", "all")
