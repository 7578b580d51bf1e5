"""Studies with planted results: files as `cisterna evaluate` and `cisterna rl` write them, with known effects."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure

from cisterna.artifacts import files
from cisterna.report import pages, tables
from cisterna.report.figures import DRAWINGS, style
from cisterna.report.gather import gather
from cisterna.scoring import gene_ontology, metrics
from cisterna.scoring.answers import Terms, completion
from cisterna.study import Model, Study, load
from cisterna.tasks import catalog
from terms import OBO
from tiny import ROOT

SIZE = 120


class Planted:
    """A study with planted results; its tables are gathered and its figures drawn once, when a test asks for them."""

    def __init__(self, study: Study, results: Path) -> None:
        self.study = study
        self.results = results

    @classmethod
    def of(cls, given: dict[str, Any], results: Path, size: int = SIZE) -> "Planted":
        """Plant the results of a study in a folder."""
        self = cls(load(given), results)
        if self.study.of_terms:
            (results / "go.obo").write_text(OBO)
            for task in self.study.of_terms:
                (results / "data" / task).mkdir(parents=True)
                gene_ontology.read(results / "go.obo").write(results / "data" / task / gene_ontology.FILE)
        plant(self.study, results, size)
        return self

    @cached_property
    def folder(self) -> Path:
        """The folder of the tables."""
        folder = self.results / "study"
        gather(self.study, self.results, folder)
        return folder

    @cached_property
    def tables(self) -> tables.Tables:
        return tables.read(self.study, self.folder)

    def read(self, table: str) -> pd.DataFrame:
        return pd.read_parquet(self.folder / table)

    @cached_property
    def drawn(self) -> dict[str, Figure]:
        """The figures by name, laid out and not written."""
        with style.context(self.tables.metrics.metric.unique()):
            drawn = {name: draw(self.study, self.tables) for name, draw in DRAWINGS.items()}
            for figure in drawn.values():
                figure.draw_without_rendering()
        return drawn

    def titles(self, figure: str) -> list[str]:
        """The titles of the panels of a figure."""
        return [axes.get_title(loc="left") for axes in self.drawn[figure].axes]

    @cached_property
    def page(self) -> str:
        """The page of all results."""
        return pages.results(self.tables, self.study.name)


def plant(study: Study, results: Path, size: int = SIZE) -> None:
    """Predictions whose skill grows with SFT; RL adds skill in-domain, a prior shift out of it."""
    for code, (folder, path, task) in enumerate(study.evaluations()):
        model = study.model(path)
        labels = _labels(study, task)
        scores = {}
        for split in ("id", "ood"):
            rng = np.random.default_rng([1, code, split == "ood"])
            gold = _gold(task, labels, split, size)
            skill, mix, broken = _ability(model, labels, split)
            blind = rng.choice(labels, size, p=mix)
            predicted = np.where(rng.random(size) < skill, gold, blind).astype(object)
            predicted[rng.random(size) < broken] = None
            ids = [f"{task}-{split}-{row}" for row in range(size)]
            frame = pd.DataFrame({"id": ids, "answer": gold, "predicted": predicted})
            outputs = ["no answer" if answer is None else completion("It looks so.", answer) for answer in predicted]
            frame = frame.assign(prompt=[f"What is {name}?" for name in ids], output=outputs, finished=True)
            frame = frame.sample(frac=1, random_state=code)
            (results / folder).mkdir(parents=True, exist_ok=True)
            frame.to_parquet(results / folder / f"{split}.parquet", index=False)
            scores[split] = _score(results, task, gold, predicted, labels)
        files.write_json(results / folder / "metrics.json", scores)
    for model in study.models:
        if model.kind in ("base", "cpt"):
            value = 1000.0 if model.kind == "base" else 20.0
            summary = {"value": value, "low": value - 1, "high": value + 1, "n": 500}
            files.write_json(results / model.path / "perplexity.json", dict.fromkeys(study.corpora, summary))
        if model.kind == "rl":
            files.write_json(results / model.path / "checkpoint" / "history.json", history(model))
    for task in study.tasks:
        labels = _labels(study, task)
        rng = np.random.default_rng([3, len(task)])
        scores = {}
        for name, skill in {"majority": None, "knn": 0.25, "logistic": 0.45}.items():
            scores[name] = {}
            for split in ("id", "ood"):
                gold = _gold(task, labels, split, size)
                drop = 0.6 if split == "ood" else 1
                blind = rng.choice(labels, size)
                predicted = np.where(rng.random(size) < (skill or 0) * drop, gold, blind)
                if skill is None:
                    predicted = np.full(size, labels[0])
                scores[name][split] = _score(results, task, gold, predicted, labels)
        files.write_json(results / "baselines" / task / "metrics.json", scores)


def history(model: Model) -> list[dict[str, float]]:
    """What the trainer logs of 16 steps an epoch: every 10th and the last of each epoch. The reward rises by 0.01."""
    logged = []
    for step in range(1, 16 * model.rl_epochs + 1):
        if step % 10 == 0 or step % 16 == 0:
            numbers = {"step": step, "epoch": step / 16, "loss": 0.0}
            rewards = {"reward": 0.5 + step / 100, "reward_std": 0.3, "frac_reward_zero_std": 0.25}
            logged.append(numbers | rewards | {"rewards/correct/mean": 0.5})
    return [*logged, {"step": 16 * model.rl_epochs, "epoch": model.rl_epochs, "train_loss": 0.1}]


def _score(results: Path, task: str, gold: np.ndarray, predicted: np.ndarray, labels: list[str]) -> dict:
    terms = results / "data" / task / gene_ontology.FILE
    if terms.is_file():
        return Terms(gene_ontology.load(terms)).score(gold, predicted, resamples=200)
    return metrics.score(gold, predicted, labels, resamples=200)


def _labels(study: Study, task: str) -> list[str]:
    if task in study.of_terms:
        return ["GO:0000004", "GO:0000003, GO:0000014", "GO:0000012", "GO:0000005"]
    return list(study.config["tasks"][task].get("labels") or catalog.LABELS[task])


def _gold(task: str, labels: list[str], split: str, size: int) -> np.ndarray:
    weights = np.ones(len(labels))
    weights[-1] = 2.7 if split == "ood" else 1.2
    rng = np.random.default_rng([2, len(task), split == "ood"])
    return rng.choice(labels, size, p=weights / weights.sum())


def _ability(model: Model, labels: list[str], split: str) -> tuple[float, np.ndarray, float]:
    """Skill, blind mix of labels, rate of malformed outputs."""
    mix = np.ones(len(labels))
    skill = 0.62 * (1 - 0.55**model.sft_epochs) + (0.05 if model.cpt and model.sft_epochs else 0)
    broken = 0.02 if model.sft or model.rl else 1.0
    if split == "ood":
        skill *= 0.4
    if model.kind == "rl":
        mix[-1] = 6 if split == "ood" else 1
        skill += 0 if split == "ood" else 0.1
        broken = 0.0
    return skill, mix / mix.sum(), broken


def config(**changes: Any) -> dict[str, Any]:
    """The default study's recipes on two tasks, with changes of its lineage."""
    study = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    study["study"] = "small"
    study["evaluation"]["bootstrap"] = 200
    study["recipes"]["sft"]["brief"]["epochs"] = [1, 2, 4, 8]
    study["recipes"]["rl"]["grpo"]["epochs"] = [1]
    lineage = {
        "sweep": "small",
        "tasks": ["splice-donor", "cell-type"],
        "backbones": ["nano"],
        "cpt": ["none", "bio"],
        "sft": ["brief"],
        "rl": [{"recipe": "grpo", "from": [1, 8]}],
    }
    study["lineages"] = [lineage | changes]
    return study


def forms(*sequences: str, **changes: Any) -> dict[str, Any]:
    """`config` with splice-donor in these forms."""
    study = config(**changes)
    study["tasks"]["splice-donor"] |= {"sequences": list(sequences), "encoder": "nano-esm"}
    return study


def terms() -> dict[str, Any]:
    """`config` with a task of labels and one whose answers are sets of terms."""
    study = config(tasks=["splice-donor", "functions"], cpt=["none"])
    study["tasks"]["functions"] = {
        "adapter": "go-terms",
        "file": "proteins.csv",
        "options": {"ontology": "go.obo"},
        "ood": ["Danio rerio"],
    }
    return study
