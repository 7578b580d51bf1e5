"""Sets of terms are compared as the CAFA evaluator compares them."""

import math
import random

import numpy as np
import pytest
from cafaeval.evaluation import evaluate_prediction
from cafaeval.parser import gt_parser, obo_parser, pred_parser

from cisterna.scoring import gene_ontology, term_sets
from cisterna.scoring.answers import Terms
from terms import EVERYTHING, LIVE

METRICS = ("precision_micro", "recall_micro", "f1_micro", "precision_protein", "recall_protein", "f1_protein")
NAMESPACES = ("biological_process", "cellular_component", "molecular_function")


def _annotations(rng, proteins, empty):
    """Random sets of terms, roots and alternative ids among them; with `empty` some have none."""
    return [rng.sample(EVERYTHING, rng.randint(0 if empty else 1, 7)) for _ in range(proteins)]


def _evaluated(folder, obo, gold, predicted, weights):
    """The CAFA evaluator's numbers by namespace, at one threshold that all predictions are above."""
    folder.mkdir()
    said, true, file = folder / "predictions.tsv", folder / "gold.tsv", None
    said.write_text("".join(f"p{row}\t{term}\t1.0\n" for row, terms in enumerate(predicted) for term in terms))
    true.write_text("".join(f"p{row}\t{term}\n" for row, terms in enumerate(gold) for term in terms))
    if weights is not None:
        file = folder / "ia.tsv"
        file.write_text("".join(f"{term}\t{weight!r}\n" for term, weight in weights.items()))
    graphs = obo_parser(str(obo), ia_file=None if file is None else str(file), orphans=False)
    truth = gt_parser(str(true), graphs)
    predictions = pred_parser(str(said), graphs, truth, "max")
    if not predictions:
        return {}
    frame = evaluate_prediction(predictions, truth, graphs, np.array([0.5]), n_cpu=1)
    return {row["ns"]: row for _, row in frame.iterrows()}


@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_micro_and_protein_centred_f1_equal_those_of_the_cafa_evaluator(go, obo, tmp_path, weighted):
    rng = random.Random(7)
    columns = ("pr_micro", "rc_micro", "f_micro", "pr", "rc", "f")
    compared, seen = 0, set()
    for trial in range(40):
        gold = _annotations(rng, rng.randint(1, 12), empty=False)
        predicted = _annotations(rng, len(gold), empty=True)
        if trial % 3 == 0:  # mostly right, so that the numbers are not all small
            predicted = [sorted({*terms[:2], *wrong[:1]}) for terms, wrong in zip(gold, predicted, strict=True)]
        weights = None
        if weighted:  # some terms without a weight, with none, and with one that is not finite
            weights = {term: rng.choice([0.0, 0.25, 1.7, 3.1, 9.9]) for term in rng.sample(LIVE, 9)}
            weights[rng.choice(LIVE)] = math.inf
        theirs = _evaluated(tmp_path / str(trial), obo, gold, predicted, weights)
        scored = go.weighted(gene_ontology.read_weights(tmp_path / str(trial) / "ia.tsv", go)) if weighted else go
        ours = Terms(scored).score(_texts(gold), _texts(predicted), resamples=1)
        for namespace in NAMESPACES:
            row = theirs.get(namespace)
            for metric, column in zip(METRICS, columns, strict=True):
                mine = ours.get(f"{metric}:{namespace}", {"value": 0.0})["value"]
                if row is None:  # theirs leaves out a namespace that nothing is predicted in
                    assert mine == 0.0
                    continue
                compared += 1
                seen.add(mine)
                assert mine == pytest.approx(row[column + ("_w" if weighted else "")], rel=1e-12, abs=0), trial
    assert compared > 600
    assert len(seen) > 150


def _texts(sets):
    return [", ".join(terms) or None for terms in sets]


def test_micro_f1_over_all_namespaces_is_the_sum_of_the_namespaces_for_proteins_annotated_in_all(go, obo, tmp_path):
    rng = random.Random(3)
    for trial in range(20):
        gold = [[*terms, "GO:0000004", "GO:0000014", "GO:0000024"] for terms in _annotations(rng, 6, empty=False)]
        predicted = _annotations(rng, 6, empty=True)
        rows = _evaluated(tmp_path / str(trial), obo, gold, predicted, None).values()
        # The CAFA evaluator's tp, fp and fn are means over the proteins of the namespace, which all are here.
        hit, extra, lost = (6 * sum(row[name] for row in rows) for name in ("tp", "fp", "fn"))
        truth = sum(len(go.propagate(terms)) for terms in gold)
        said = sum(len(go.propagate(terms)) for terms in predicted)
        ours = Terms(go).score(_texts(gold), _texts(predicted), resamples=1)
        assert ours["precision_micro"]["value"] == pytest.approx(hit / said if said else 0, rel=1e-12)
        assert ours["recall_micro"]["value"] == pytest.approx(hit / truth, rel=1e-12)
        assert (hit + extra) == pytest.approx(said)
        assert hit + lost <= truth + 1e-9


def test_the_f1_of_one_protein_is_the_micro_f1_of_a_study_with_one(go):
    rng = random.Random(5)
    weighted = go.weighted({term: rng.random() for term in LIVE})
    for _ in range(100):
        ((said,), (true,)) = _annotations(rng, 1, empty=False), _annotations(rng, 1, empty=False)
        scores = Terms(weighted).score([", ".join(true)], [", ".join(said)], resamples=1)
        assert term_sets.f1(said, true, weighted) == scores["f1_micro"]["value"]


def test_an_unknown_id_costs_as_much_as_a_mean_term_and_is_counted(go):
    assert term_sets.f1(["GO:0000014"], ["GO:0000014"], go) == 1.0
    assert term_sets.f1(["GO:0000014", "GO:0099999"], ["GO:0000014"], go) == pytest.approx(2 / 3)
    assert term_sets.f1(["GO:0000014", "GO:0000081"], ["GO:0000014"], go) == pytest.approx(2 / 3)
    weighted = go.weighted({"GO:0000014": 1.0, "GO:0000022": 3.0})
    assert term_sets.f1(["GO:0000014", "GO:0099999"], ["GO:0000014"], weighted) == pytest.approx(2 * 1 / (3 + 1))
    scores = Terms(go).score(["GO:0000014"], ["GO:0000014, GO:0000081, GO:0099999"], resamples=1)
    assert scores["unknown_terms"]["value"] == pytest.approx(2 / 3)
    assert scores["accuracy"]["value"] == 0.0


def test_a_malformed_output_predicts_nothing(go):
    scores = Terms(go).score(["GO:0000014", "GO:0000022"], ["GO:0000014", None], resamples=1)
    assert scores["well_formed"]["value"] == 0.5
    assert scores["accuracy"]["value"] == 0.5
    assert scores["precision_micro"]["value"] == 1.0
    assert scores["recall_micro"]["value"] == 0.5
    assert scores["precision_protein"]["value"] == 1.0  # of the one protein that something is predicted for
    assert scores["f1_micro:cellular_component"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 1}
    assert "f1_micro:molecular_function" not in scores


def test_intervals_are_those_of_a_bootstrap_over_proteins(go):
    rng = random.Random(1)
    gold, predicted = _annotations(rng, 60, empty=False), _annotations(rng, 60, empty=True)
    found = Terms(go).score(_texts(gold), _texts(predicted), seed=0, resamples=2000)
    generator = np.random.default_rng(99)
    draws = []
    for _ in range(200):  # the same by drawing the proteins and scoring them
        chosen = generator.integers(0, 60, 60)
        again = Terms(go).score(
            [_texts(gold)[index] for index in chosen], [_texts(predicted)[index] for index in chosen], resamples=1
        )
        draws.append((again["f1_micro"]["value"], again["f1_protein"]["value"]))
    for column, metric in enumerate(("f1_micro", "f1_protein")):
        low, high = np.percentile(np.array(draws)[:, column], [2.5, 97.5])
        assert found[metric]["low"] == pytest.approx(low, abs=0.02)
        assert found[metric]["high"] == pytest.approx(high, abs=0.02)
        assert found[metric]["low"] < found[metric]["value"] < found[metric]["high"]
        assert found[metric]["n"] == 60


def test_a_difference_is_that_of_the_scores_and_its_interval_is_paired(go):
    rng = random.Random(4)
    gold, worse = _annotations(rng, 40, empty=False), _annotations(rng, 40, empty=True)
    better = [sorted({*said, *true[:1]}) for said, true in zip(worse, gold, strict=True)]
    gold, worse, better = _texts(gold), _texts(worse), _texts(better)
    found = Terms(go).difference(gold, worse, better, seed=0, resamples=500)
    one, other = (Terms(go).score(gold, said, seed=0, resamples=500) for said in (worse, better))
    assert set(found) == set(one)
    for name, summary in found.items():
        assert summary["value"] == pytest.approx(other[name]["value"] - one[name]["value"], abs=1e-12)
        assert summary["n"] == one[name]["n"]
        assert summary["low"] <= summary["value"] + 1e-9
        assert summary["high"] >= summary["value"] - 1e-9
    paired = found["f1_micro"]["high"] - found["f1_micro"]["low"]
    apart = math.hypot(*(scores["f1_micro"]["high"] - scores["f1_micro"]["low"] for scores in (one, other)))
    assert 0 < paired < apart
    same = Terms(go).difference(gold, worse, worse, resamples=50)
    assert {(summary["value"], summary["low"], summary["high"]) for summary in same.values()} == {(0.0, 0.0, 0.0)}
    with pytest.raises(ValueError, match="40 gold and 39 predicted"):
        Terms(go).difference(gold, worse[:-1], better)
    with pytest.raises(ValueError, match="0 gold and 0 predicted"):
        Terms(go).score([], [])


def test_the_best_answer_for_every_protein_alike_is_the_best_cut_of_the_most_frequent_terms(go):
    rng = random.Random(11)
    for _ in range(30):
        weighted = go.weighted({term: rng.choice([0.0, 0.5, 2.0]) for term in LIVE}) if rng.random() < 0.5 else go
        proteins = [go.specific(terms) for terms in _annotations(rng, 8, empty=False)]
        found = term_sets.frequent(proteins, weighted)
        assert go.specific(found) == found
        sets = [go.propagate(terms) for terms in proteins]
        times = {term: sum(term in terms for terms in sets) for term in LIVE}

        def blind(answer, proteins=proteins, weighted=weighted):
            counts = sum(term_sets.overlap(answer, gold, weighted) for gold in proteins)
            return term_sets.micro(counts.sum(axis=0))[2]

        cuts = [[term for term in LIVE if times[term] >= least] for least in range(1, 9)]
        assert blind(found) >= max(blind(cut) for cut in cuts) - 1e-12
