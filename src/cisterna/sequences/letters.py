"""Letters of sequences as files have them: one rule for tables, corpora, adapters and predictions.

Lower case (soft-masked residues) is read as upper case. What happens to unusual letters, B, J, O, U and Z of proteins
and the IUPAC codes of nucleotides, is the key `unusual_letters`:

    refuse    an error that names the row (default for dna and rna)
    mask      read as the unknown residue, X or N (default for protein)
    keep      left in prompts and sequences, for encoders that know them; residue tokens are those of X or N

Gaps, stops and any other letter are refused under every rule. Not for the alphabets of encoders
(`cisterna.sequences.encoders`).
"""

from collections import Counter
from typing import Any

from cisterna.errors import UserError
from cisterna.sequences.tokenization import ALPHABETS, UNUSUAL

MARKS = {
    "*": "a stop, and no residue. Remove it",
    "-": "a gap of an alignment, and no residue. Remove the gaps",
    ".": "a gap of an alignment, and no residue. Remove the gaps",
}
OTHER_MODALITY = {
    ("dna", "U"): "a base of RNA. Set `modality: rna`, or write T",
    ("rna", "T"): "a base of DNA. Set `modality: dna`, or write U",
}


class Reader:
    """Reads the sequences of one modality by one rule, and counts what it changed."""

    def __init__(self, modality: str, rule: str | None = None) -> None:
        """`rule` is the value of `unusual_letters`; None is the default of the modality."""
        self.modality = modality
        self.rule = rule or ("mask" if modality == "protein" else "refuse")
        self.unknown = ALPHABETS[modality][-1]
        self._usual = ALPHABETS[modality].encode()
        self._masks = str.maketrans(dict.fromkeys(UNUSUAL[modality], self.unknown))
        self._unusual: Counter[str] = Counter()
        self._rows = self._lower_case = 0

    def is_usual(self, sequence: str) -> bool:
        """Whether `read` leaves a sequence as it is, without anything to count."""
        return not sequence.encode().translate(None, self._usual)

    def read(self, sequence: str, where: str) -> str:
        """The sequence in upper case, by the rule. UserError, naming letter and position, for one that is refused."""
        upper = sequence.upper() if sequence.isascii() else sequence  # upper() can change other letters, and the length
        self._lower_case += upper != sequence
        if self.is_usual(upper):
            return upper
        found = Counter(upper)
        wrong = [letter for letter in found if letter not in ALPHABETS[self.modality]]
        refused = (
            wrong if self.rule == "refuse" else [letter for letter in wrong if letter not in UNUSUAL[self.modality]]
        )
        if refused:
            raise UserError(f"{where}: {self._refusal(refused[0], upper)}")
        self._rows += 1
        self._unusual.update({letter: found[letter] for letter in wrong})
        return upper.translate(self._masks) if self.rule == "mask" else upper

    def _refusal(self, letter: str, sequence: str) -> str:
        place = f"letter {letter!r} at position {sequence.index(letter) + 1} is"
        if letter in MARKS:
            return f"{place} {MARKS[letter]}."
        if (self.modality, letter) in OTHER_MODALITY:
            return f"{place} not a letter of {self.modality}, but {OTHER_MODALITY[self.modality, letter]}."
        if letter in UNUSUAL[self.modality]:
            return (
                f"{place} an unusual letter of {self.modality}. Correct it, or set `unusual_letters: mask` to read it "
                f"as {self.unknown}."
            )
        return f"{place} not a letter of {self.modality} ({ALPHABETS[self.modality]}). Correct the sequence."

    def report(self) -> dict[str, Any]:
        """What was read otherwise than it was written, for a card: nothing if there is none.

        `unusual` has the number of each unusual letter, `sequences` how many have one, `lower_case` how many have
        letters in lower case.
        """
        found: dict[str, Any] = {}
        if self._unusual:
            read = f"read as {self.unknown}" if self.rule == "mask" else f"kept for encoders, {self.unknown} in tokens"
            found = {
                "rule": f"{self.rule}: {read}",
                "unusual": dict(sorted(self._unusual.items())),
                "sequences": self._rows,
            }
        return found | ({"lower_case": self._lower_case} if self._lower_case else {})
