"""cell-type (rna): which kind of blood cell expresses these genes?

One peripheral blood mononuclear cell as a "cell sentence": its most expressed genes in descending order (ties by
name), the form used by Cell2Sentence. The label is the annotation that ships with the data, from the correlation with
sorted populations; the trace lists the canonical marker genes of each cell type that are in the sentence. The markers
are from the literature; none was chosen on these data.

    id          pbmc-AACACGTGGTCTTT
    genes       NKG7 GNLY CLIC3 IL32 FTL CCL5 CD7 GSTP1 HNRNPA1 CALM1 EIF4A1 SRGN TXNIP CD247 CTSW
                NPM1 RPL36AL S100A4 SPON2 GZMM PLAC8 PTPRCAP VIM C19orf43 IDH2 IFITM2 PHB RHOC
                RPS24 TCEB2 C1orf162 CCL4 CD52 CD63 CLIC1 CST7 GABARAPL2 GSTK1 GZMB IFITM1
    annotation  CD56+ NK
    phase       G1
    prompt      Which cell type? NKG7 GNLY CLIC3 IL32 FTL CCL5 CD7 GSTP1 HNRNPA1 CALM1 EIF4A1 SRGN
                TXNIP CD247 CTSW NPM1
    trace       b-cell none, t-cell none, cytotoxic NKG7 GNLY CCL5 CTSW, monocyte none, dendritic
                none
    answer      cytotoxic

Source: Zheng et al., Nature Communications 8:14049 (2017), 700 cells and 765 genes as shipped in
Scanpy 1.11.5 (`pbmc68k_reduced`, column `bulk_labels`). Cell2Sentence: Levine et al., ICML 2024.
Markers: Zheng et al. (2017); Villani et al., Science 356:eaah4573 (2017).
"""

from typing import Any

import pandas as pd

LENGTH = None
GENES = 16  # genes of a sentence
CELL_TYPES = {
    "CD19+ B": "b-cell",
    "CD4+/CD25 T Reg": "t-cell",
    "CD4+/CD45RA+/CD25- Naive T": "t-cell",
    "CD4+/CD45RO+ Memory": "t-cell",
    "CD8+/CD45RA+ Naive Cytotoxic": "t-cell",
    "CD8+ Cytotoxic T": "cytotoxic",
    "CD56+ NK": "cytotoxic",
    "CD14+ Monocyte": "monocyte",
    "Dendritic": "dendritic",
}
MARKERS = {
    "b-cell": frozenset({"CD79A", "CD79B", "MS4A1", "IGJ", "IGLL5", "MZB1", "BANK1"}),
    "t-cell": frozenset({"CD3D", "CD3E", "CD3G", "IL7R", "LTB", "CCR7", "CD27", "LDHB"}),
    "cytotoxic": frozenset({"NKG7", "GNLY", "GZMA", "GZMB", "GZMH", "GZMK", "PRF1", "CCL5", "CST7", "CTSW", "FGFBP2"}),
    "monocyte": frozenset({"S100A8", "S100A9", "FCN1", "FCGR3A", "LST1", "AIF1", "CTSS"}),
    "dendritic": frozenset({"FCER1A", "CLEC10A", "CST3", "HLA-DQA1", "HLA-DQB1", "PLD4", "IRF8"}),
}

MEANING = (
    "annotation `bulk_labels` merged to five kinds: b-cell (CD19+), t-cell (CD4+ and naive CD8+), cytotoxic (CD56+ NK "
    "and CD8+ cytotoxic T), monocyte (CD14+), dendritic; CD34+ (13 cells) is left out"
)
RULE = "out of domain: cells scored as S or G2M phase; train, validation and id have cells in G1 only"


def prompt(sentence: str) -> str:
    """The question about one cell, by its first GENES genes."""
    return f"Which cell type? {' '.join(sentence.split()[:GENES])}\n"


def segments(sentence: str) -> list[dict[str, Any]]:
    """None: the sentence has genes and no residues."""
    return []


def reasoning(sentence: str) -> str:
    """The marker genes of each cell type in the sentence, in its order, or `none`."""
    genes = sentence.split()
    return ", ".join(
        f"{cell_type} {' '.join(gene for gene in genes if gene in markers) or 'none'}"
        for cell_type, markers in MARKERS.items()
    )


def examples(raw: pd.DataFrame) -> pd.DataFrame:
    """Raw rows (id, genes in descending order of expression, annotation, phase) as examples; the group is the phase."""
    sentence = raw["genes"].map(lambda genes: " ".join(str(genes).split()[:GENES]))
    phase = raw["phase"].astype(str)
    return pd.DataFrame(
        {"answer": raw["annotation"].map(CELL_TYPES), "sequence": sentence, "group": phase, "ood": phase != "G1"}
    )
