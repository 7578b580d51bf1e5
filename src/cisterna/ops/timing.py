"""How long the jobs of a study take, from what their parts cost, and how long all of them on so many cores.

A job is a sum of parts: its start, and tokens, rows or steps of one kind (`Timing.parts`). What a part costs is
measured by `cisterna.ops.probes`, by commands that have the same parts. Arithmetic alone; nothing runs here.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from cisterna.constants import SPLITS
from cisterna.ops.workload import NUM_GENERATIONS, Workload
from cisterna.study import Model, Study
from cisterna.study.jobs import Job

Part = tuple[str, ...]  # the kind of a job, what tells it from others of its kind, and the last word: of what it is one
START = "start"


class Lengths(NamedTuple):
    """Of the examples of a task, in tokens of a backbone, from the rows of train."""

    prompt: float  # mean
    completion: float  # mean, of reasoning and answer
    longest: int  # completion
    labels: int  # that get probabilities


@dataclass(frozen=True)
class Timing:
    """The parts of the jobs of a study. `work` has the sizes of its data."""

    study: Study
    work: Workload
    lengths: Mapping[tuple[str, str], Lengths]  # (backbone, task)
    heldout: Mapping[str, float]  # backbone -> held-out tokens of its corpora

    @cached_property
    def _evaluations(self) -> dict[str, Model]:
        study = self.study
        return {folder: study.as_evaluated(study.model(path), task) for folder, path, task in study.evaluations()}

    def evaluated(self, job: Job) -> Model:
        """The model of an evaluation, in the form in which it is evaluated."""
        return self._evaluations[job.output]

    def trained(self, job: Job) -> Model:
        """The model that a CPT, SFT or RL job makes."""
        return self.study.model(job.output.removesuffix("/checkpoint"))

    def parts(self, job: Job) -> dict[Part, float]:
        """How much of what a job does. ValueError for a kind of job that nobody has an estimate for."""
        study, kind = self.study, job.kind
        if kind in ("data", "base", "encoder"):
            return {(kind, job.name, START): 1}
        if kind in ("cpt", "sft", "rl"):
            model = self.trained(job)
            key = (kind, self.network(model.backbone), self.form(model))
            return {(*key, START): 1, (*key, "token"): self._tokens_trained(model)}
        if kind == "baselines":
            return {(kind, job.name, "row"): self._rows(job.name)}
        if kind == "tokenize":
            backbone, _, corpus = job.name.partition("/")
            return {(kind, job.name, "token"): self.work.corpora.get((backbone, corpus), 0)}
        if kind == "features":
            encoder, _, task = job.name.partition("/")
            network = self.network(encoder)
            return {(kind, network, START): 1, (kind, network, "row"): self._rows(task)}
        if kind == "answers":
            return self._group(f"models/{job.name}")
        if kind == "evaluate":
            parts = self._evaluation(self.evaluated(job))
            in_group = job.output in study.group_of  # then the answers are there, and no model is loaded
            return {part: units for part, units in parts.items() if not in_group or part[-1] == "scores"}
        if kind == "perplexity":
            backbone = job.name.partition("/")[0]
            return {(kind, self.network(backbone), "token"): self.heldout.get(backbone, 0)}
        if kind in ("gather", "findings", "quotes"):
            return {(kind, "row"): sum(self.work.rows_tested(task) for _, _, task in study.evaluations())}
        if kind == "figures":
            return {(kind, "evaluation"): len(study.evaluations())}
        raise ValueError(f"no estimate of the time of jobs of kind {kind}")

    def network(self, name: str) -> str:
        """The first backbone or encoder of the config that differs from this one in its weights alone, if at all."""
        named = {**self.study.config["backbones"], **self.study.config["encoders"]}
        shapes = {other: spec | {"random_weights": None} for other, spec in named.items()}
        return next(other for other, shape in shapes.items() if shape == shapes[name])

    def form(self, model: Model) -> str:
        """In which form a model gets the sequences, in one word."""
        return f"{model.sequences}-{self.network(model.encoder)}" if model.encoder else model.sequences

    def _rows(self, task: str) -> int:
        return sum(self.work.rows(task, split) for split in SPLITS)

    def _tokens_trained(self, model: Model) -> float:
        """Tokens of training; for RL of prompts and completions that are sampled and trained on."""
        work = self.work.of(model)
        if model.kind == "cpt":
            return work.tokens
        lengths = self.lengths[model.backbone, str(model.task)]
        if model.kind == "sft":
            return work.examples * (lengths.prompt + lengths.completion)
        recipe = self.study.recipe("rl", str(model.rl))
        limit = recipe.get("max_completion_length") or 512
        generated = written(limit, lengths, model.sft is not None)
        return work.examples * (recipe.get("num_generations") or NUM_GENERATIONS) * (lengths.prompt + generated)

    def _group(self, group: str) -> dict[Part, float]:
        """What a group of evaluations does but for the scores. vLLM starts once; transformers load each checkpoint."""
        whole: dict[Part, float] = {}
        for folder, _, _ in self.study.groups[group]:
            for part, units in self._evaluation(self._evaluations[folder]).items():
                once = part[-1] == START and self.study.config["evaluation"].get("engine") == "vllm"
                if part[-1] != "scores":
                    whole[part] = units if once else whole.get(part, 0) + units
        return whole

    def _evaluation(self, model: Model) -> dict[Part, float]:
        lengths = self.lengths[model.backbone, str(model.task)]
        rows, options = self.work.rows_tested(str(model.task)), self.study.config["evaluation"]
        knows_the_form = model.kind in ("sft", "rl")
        outputs = rows * (1 + (options.get("samples") or 0))
        steps = outputs * written(options["max_new_tokens"], lengths, knows_the_form)
        read = outputs * lengths.prompt
        shots = 0 if knows_the_form else options.get("shots") or 0
        if shots:  # outputs more, after examples of train, which vLLM reads once
            times = 1 if options.get("engine") == "vllm" else rows
            read += rows * lengths.prompt + times * shots * (lengths.prompt + lengths.completion)
            steps += rows * options["max_new_tokens"]
        key = ("evaluate", self.network(model.backbone), self.form(model))
        parts: dict[Part, float] = {(*key, START): 1, (*key, "scores"): 1}
        parts |= {(*key, "prompt token"): read, (*key, "new token"): steps}
        if knows_the_form and options.get("calibration"):  # other outputs end no thought, so no label is measured
            parts[*key, "label"] = rows * lengths.labels
        return parts


def written(limit: int, lengths: Lengths, knows_the_form: bool) -> int:
    """Steps until the last output of a batch ends: models write as long as the longest example that they were taught,
    and others to the limit.
    """
    return min(limit, lengths.longest) if knows_the_form else limit


def cost(parts: Mapping[Part, float], costs: Mapping[Part, float]) -> float:
    """The seconds of parts, from the seconds of a unit of each. KeyError for one that was not measured."""
    return sum(units * costs[part] for part, units in parts.items())


def makespan(jobs: Sequence[tuple[Job, float]], cores: int, gpus: int, uses: Mapping[str, tuple[int, int]]) -> float:
    """Seconds until all jobs, each with its seconds, are done on so many cores and GPUs.

    A job starts as soon as what it needs is there and its threads and GPUs are free, in the order of `jobs`; a job that
    needs more than there are takes all. `uses`: kind -> (threads, GPUs). Inputs that none of `jobs` makes exist.
    """
    makers = {output: index for index, (job, _) in enumerate(jobs) for output in job.outputs}
    before = [{makers[need] for need in job.needs if need in makers} for job, _ in jobs]
    after: list[list[int]] = [[] for _ in jobs]
    for index, needed in enumerate(before):
        for maker in needed:
            after[maker].append(index)
    taken = [tuple(map(min, uses[job.kind], (cores, gpus))) for job, _ in jobs]
    ready = [index for index, needed in enumerate(before) if not needed]
    heapq.heapify(ready)
    running: list[tuple[float, int]] = []
    now, free_cores, free_gpus = 0.0, cores, gpus
    while ready or running:
        blocked = []
        while ready and free_cores:
            index = heapq.heappop(ready)
            threads, devices = taken[index]
            if threads > free_cores or devices > free_gpus:
                blocked.append(index)
                continue
            free_cores, free_gpus = free_cores - threads, free_gpus - devices
            heapq.heappush(running, (now + jobs[index][1], index))
        for index in blocked:
            heapq.heappush(ready, index)
        now, index = heapq.heappop(running)
        threads, devices = taken[index]
        free_cores, free_gpus = free_cores + threads, free_gpus + devices
        for follower in after[index]:
            before[follower].discard(index)
            if not before[follower]:
                heapq.heappush(ready, follower)
    return now
