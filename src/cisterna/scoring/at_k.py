"""Accuracy at k samples: the chance that one of k answers is right (pass@k), or that their majority is (maj@k).

Not for drawing the samples: see `cisterna.evaluation.generate`.
"""

import math
from collections import Counter
from collections.abc import Sequence

from cisterna.scoring import bootstrap
from cisterna.scoring.bootstrap import Summary


def score(
    gold: Sequence[str],
    samples: Sequence[Sequence[str | None]],
    seed: int = 0,
    resamples: int = bootstrap.RESAMPLES,
) -> dict[str, Summary]:
    """Summaries of `pass@k` and `maj@k` for k = 1, 2, 4, ... up to the number of samples.

    `samples` has a row an example: its sampled answers, as many for each example, None where malformed. The values are
    means over the examples of `pass_at_k` and `majority_at_k`; maj@1 is pass@1 and is left out. Raises ValueError for
    no samples or numbers of samples that differ.
    """
    if len(gold) != len(samples):
        raise ValueError(f"lengths differ: {len(gold)} gold, {len(samples)} rows of samples")
    sizes = {len(row) for row in samples}
    if len(sizes) > 1 or 0 in sizes:
        raise ValueError(f"every example needs the same number of samples, at least 1: {sorted(sizes)}")
    size = sizes.pop() if sizes else 0
    steps = [2**power for power in range(size.bit_length())]
    right = [sum(vote == answer for vote in row) for answer, row in zip(gold, samples, strict=True)]
    columns = {f"pass@{k}": [pass_at_k(size, number, k) for number in right] for k in steps}
    for k in steps[1:]:
        columns[f"maj@{k}"] = [majority_at_k(row, answer, k) for answer, row in zip(gold, samples, strict=True)]
    return bootstrap.means(columns, seed, resamples)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The chance that k of the samples, drawn without replacement, include a correct one.

    The unbiased estimate, from `samples` answers of which `correct` are right, of the chance that one of k new answers
    is right: 1 - C(samples - correct, k) / C(samples, k) (Chen et al. 2021, arXiv:2107.03374, equation 1).
    """
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise ValueError(f"{correct} of {samples} samples correct, {k} drawn")
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def majority_at_k(votes: Sequence[str | None], gold: str, k: int) -> float:
    """The chance that the most frequent answer of k of the votes, drawn without replacement, is the gold one.

    Self-consistency (Wang et al. 2023, arXiv:2203.11171), averaged over all C(len(votes), k) choices, so that it is as
    unbiased as `pass_at_k`. A malformed output (None) has no vote; t answers that are equally frequent count 1/t each;
    without any vote nothing is right.
    """
    if not 1 <= k <= len(votes):
        raise ValueError(f"{len(votes)} votes, {k} drawn")
    counts = Counter(vote for vote in votes if vote is not None)
    for_gold = counts.pop(gold, 0)
    silent = len(votes) - for_gold - counts.total()
    right = 0.0
    for wins in range(1, min(for_gold, k) + 1):
        # ways[others drawn, answers that have as many votes as the gold one], no answer having more
        ways = Counter({(drawn, 0): math.comb(silent, drawn) for drawn in range(silent + 1)})
        for count in counts.values():
            further: Counter[tuple[int, int]] = Counter()
            for (drawn, ties), number in ways.items():
                for taken in range(min(count, wins, k - wins - drawn) + 1):
                    further[drawn + taken, ties + (taken == wins)] += number * math.comb(count, taken)
            ways = further
        mine = math.comb(for_gold, wins)
        right += sum(mine * n / (1 + ties) for (drawn, ties), n in ways.items() if drawn == k - wins)
    return right / math.comb(len(votes), k)
