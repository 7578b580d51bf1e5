"""Measures what the parts of a study's jobs cost on this machine.

Of the jobs of one kind whose backbones are the same network and read sequences in the same form, the largest runs by
its own command, in a temporary folder, until it has worked for some seconds: its progress tells its start from its
steps (`cisterna.ops.trials`). Data are prepared as in the study and then cut to MOST rows a split. The parent of a
stage is a base model, or one that SFT has trained for a step: the weights change no time, but for what a model writes,
and that is told from the examples (`timing.written`).
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cisterna.artifacts import files
from cisterna.constants import SPLITS, TEST_SPLITS
from cisterna.evaluation.case import SAVED
from cisterna.ops import probe_data, workload
from cisterna.ops.timing import START, Lengths, Part, Timing
from cisterna.ops.trials import Command, Trial, Trials
from cisterna.runtime import commands
from cisterna.study import Model, Study, load
from cisterna.study.inputs import as_json, checkpoint
from cisterna.study.jobs import Job, asked_as, jobs

SECONDS = 10.0  # for which a stage is measured after its first step
REPORT = {"gather": "row", "figures": "evaluation", "findings": "row", "quotes": "row"}  # what their time grows with
MOST = 1000  # rows of a split that are used here
LARGE = 20e6  # tokens of a corpus of which only DOCUMENTS are tokenized here
DOCUMENTS = {"train_documents": 2000, "heldout_documents": 200}
HELDOUT = 4096  # tokens of a corpus whose perplexity is measured
FEW = 32  # rows of a split, at least: of an evaluation, and for models that read features


class Probes:
    """The measurements of a study: seconds of a unit of each part, in `costs`. `todo` are the jobs that are asked for.

    `results` has what is done already: prepared data, base models, encoders and tokens are read from there.
    """

    def __init__(self, study: Study, todo: Sequence[Job], results: Path, trials: Trials) -> None:
        self.study, self.todo, self.trials = study, todo, trials
        self.costs: dict[Part, float] = {}
        self._done, self._here = results.absolute(), trials.folder / "results"
        self._here.mkdir()
        self._all = jobs(study)
        self._completions: dict[tuple[str, str], list[list[int]]] = {}  # (backbone, task) -> what train teaches
        self._data: dict[tuple[str | None, str], Path] = {}  # (encoder of a bank, or None; task) -> the cut data
        self._tuned: dict[tuple[str, str, str | None], str] = {}  # (backbone, sequences, encoder) -> checkpoint of SFT
        self._perplexities: dict[str, Path] = {}  # network -> a file of perplexities
        self._large = {
            pair: tokens for pair, tokens in workload.measure(study, results).corpora.items() if tokens > LARGE
        }
        self._numbers = itertools.count(1)

    def run(self) -> Timing:
        """Measure; returns the timing of the study, whose parts have costs. UserError if a command fails."""
        kinds = {job.kind for job in self.todo}
        self._each(self._prepare, [job for job in self._all if job.kind in ("data", "base", "encoder")])
        for task in self.study.tasks:
            self._data[None, task] = self._cut(self._here / "data" / task, MOST)
        self._each(self._prepare, [job for job in self._all if job.kind == "tokenize"])
        self.timing = self._timing()
        chosen = {kind: self._largest(kind, self.todo) for kind in ("cpt", "sft", "rl", "evaluate", "perplexity")}
        if kinds & REPORT.keys() and not chosen["evaluate"]:  # the report needs one
            chosen["evaluate"] = self._largest("evaluate", self._all)[:1]
        parents = self._parents([*chosen["rl"], *chosen["evaluate"]])
        self._each(self._baselines, [job for job in self.todo if job.kind == "baselines"])
        self._each(self._bank, self._banks([*chosen["sft"], *chosen["rl"], *chosen["evaluate"], *parents]))
        self._each(self._parent, parents)
        self._each(self._stage, [*chosen["cpt"], *chosen["sft"], *chosen["rl"]])
        self._each(self._perplexity, chosen["perplexity"])
        self._each(self._evaluate, chosen["evaluate"])
        if kinds & REPORT.keys():
            self._report()
        return self.timing

    # --- What is measured ---

    def _each(self, measure: Callable[[Job], None], these: Sequence[Job]) -> None:
        """Measure each of these jobs, side by side as the study runs them."""
        threads = max(map(self.threads, these), default=1)
        self.trials.side_by_side([partial(measure, job) for job in these], threads)

    def threads(self, job: Job) -> int:
        """Threads of a job."""
        return self.study.resources(asked_as(job.kind))["threads"]

    def _largest(self, kind: str, among: Sequence[Job]) -> list[Job]:
        """Of the jobs of a kind that have the same parts, the one with the most units, for each of those parts."""
        largest: dict[Part, tuple[float, Job]] = {}
        for job in among:
            if job.kind == kind:
                parts = self.timing.parts(job)
                key, units = self._key(job), sum(parts.values())
                largest[key] = max(largest.get(key, (0.0, job)), (units, job), key=lambda pair: pair[0])
        return [job for _, job in largest.values()]

    def _key(self, job: Job) -> Part:
        return next(part[:-1] for part in self.timing.parts(job))

    def _banked(self, model: Model) -> str | None:
        """The encoder of the bank that a model reads, if it reads one."""
        return model.encoder if self.study.bank(model) else None

    def _model(self, job: Job) -> Model:
        return self.timing.evaluated(job) if job.kind == "evaluate" else self.timing.trained(job)

    # --- Commands ---

    def _command(self, job: Job, **options: object) -> Command:
        """The command of a job with other values of some options; None leaves an option out. A new work folder."""
        words, number = commands.command(self.study, job), next(self._numbers)
        options.setdefault("output", f"results/probe-{number}/{Path(job.output).name}")
        if job.work:
            options.setdefault("work", f"results/.work/probe-{number}")
        for name, value in options.items():
            flag, text = f"--{name}", as_json(value) if isinstance(value, Mapping) else str(value)
            if flag in words:
                place = words.index(flag)
                end = next((at for at in range(place + 1, len(words)) if words[at].startswith("--")), len(words))
                values = list(map(str, value)) if isinstance(value, list | tuple) else [text]
                words[place:end] = [flag, *values] if value is not None else []
        work = self.trials.folder / str(options["work"]) if "work" in options else None
        return Command(words, self.threads(job), work, may_fail=job.kind == "rl")

    # --- Data, base models, corpora, encoders ---

    def _prepare(self, job: Job) -> None:
        """The job itself, unless its result is there; then a link to that."""
        place = self._here / job.output
        if (self._done / job.proof).exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(self._done / job.output)
        elif job.kind == "tokenize":
            self._tokenize(job)
        elif job.kind == "encoder":
            self._encoder(job)
        else:
            trial = self.trials.run(self._command(job, output=f"results/{job.output}"))
            self.costs[job.kind, job.name, START] = trial.seconds

    def _tokenize(self, job: Job) -> None:
        backbone, _, corpus = job.name.partition("/")
        options = self.study.documents(corpus)
        if (backbone, corpus) in self._large:
            options |= {key: min(options.get(key, most), most) for key, most in DOCUMENTS.items()}
        trial = self.trials.run(self._command(job, options=options, output=f"results/{job.output}"))
        tokens = files.read_json(self._here / job.proof)["train"]["tokens"]
        self.costs["tokenize", job.name, "token"] = trial.seconds / tokens

    def _encoder(self, job: Job) -> None:
        """Its training for some seconds. The features here are those of the encoder as it begins."""
        spec, key = self.study.encoder(job.name), ("encoder", job.name, START)
        output = f"results/{job.output}"
        if "training" not in spec:
            self.costs[key] = self.trials.run(self._command(job, output=output)).seconds
            return
        self.costs[key] = _whole(self.trials.run(self._command(job), SECONDS))
        shortest = _at_once(spec["training"]) | {"num_train_epochs": 0.01}
        self.trials.run(self._command(job, spec=spec | {"training": shortest}, output=output))

    def _cut(self, source: Path, rows: int) -> Path:
        """Prepared data with at most so many rows a split."""
        if all(probe_data.rows(source, split) <= rows for split in SPLITS):
            return source
        return self._copy(source, dict.fromkeys(SPLITS, rows))

    def _copy(self, source: Path, rows: Mapping[str, int]) -> Path:
        """A copy of prepared data with the first so many rows of some splits, in a new folder."""
        return probe_data.cut_rows(source, self._here / f"data-{next(self._numbers)}" / source.name, rows)

    def _timing(self) -> Timing:
        """The sizes of the data, counted; of a corpus that is cut here, estimated."""
        work = workload.measure(self.study, self._here)
        heldout: dict[str, float] = {}
        for pair in self.study.tokenized:
            card = files.read_json(self._here.joinpath("tokens", *pair) / "card.json")
            taken = self._large.get(pair, card["train"]["tokens"]) / card["train"]["tokens"]
            heldout[pair[0]] = heldout.get(pair[0], 0.0) + taken * card["heldout"]["tokens"]
        work.corpora.update(self._large)
        pairs = [(backbone, task) for backbone in self.study.backbones for task in self.study.tasks]
        return Timing(self.study, work, {pair: self._lengths(*pair) for pair in pairs}, heldout)

    def _lengths(self, backbone: str, task: str) -> Lengths:
        base = self.trials.folder / checkpoint(f"models/{backbone}/base")
        lengths, self._completions[backbone, task] = probe_data.lengths(base, self._data[None, task])
        return lengths

    # --- Jobs of a study ---

    def _baselines(self, job: Job) -> None:
        data = self._data[None, job.name]
        trial = self.trials.run(self._command(job, data=data, output=f"results/{job.output}"))
        self.costs["baselines", job.name, "row"] = trial.seconds / sum(probe_data.rows(data, split) for split in SPLITS)

    def _banks(self, measured: Sequence[Job]) -> list[Job]:
        """The jobs of the banks that these read, and of an encoder more whose time is asked for."""
        read = [self._model(job) for job in measured]
        wanted = {f"{self._banked(model)}/{model.task}" for model in read if self._banked(model)}
        asked = [job.name for job in self._largest("features", self.todo)]
        networks = {self.timing.network(name.partition("/")[0]) for name in wanted}
        wanted |= {name for name in asked if self.timing.network(name.partition("/")[0]) not in networks}
        return [job for job in self._all if job.kind == "features" and job.name in wanted]

    def _bank(self, job: Job) -> None:
        """A bank of some rows; of the models that read it, the others are measured on the same rows."""
        encoder, _, task = job.name.partition("/")
        batches = [self._batch(other) for other in self._all if other.kind in ("sft", "rl")]
        data = self._copy(self._data[None, task], dict.fromkeys(SPLITS, max([FEW, *(2 * batch for batch in batches)])))
        trial = self.trials.run(self._command(job, data=data, output=data.parent / "bank"))
        rows = sum(probe_data.rows(data, split) for split in SPLITS)
        key = ("features", self.timing.network(encoder))
        self.costs[*key, START] = trial.start + trial.end
        self.costs[*key, "row"] = trial.unit * trial.total / rows
        self._data[encoder, task] = data

    def _batch(self, job: Job) -> int:
        """Examples of an SFT step, and prompts whose completions an RL job samples at a time."""
        model = self.timing.trained(job)
        recipe = self.study.recipe(model.kind, str(model.recipe))
        batch = recipe.get("per_device_train_batch_size", 8) * recipe["processes"]
        accumulated = recipe.get("gradient_accumulation_steps", 1)
        if job.kind != "rl":
            return int(batch * accumulated)
        sampled = recipe.get("generation_batch_size") or batch * (recipe.get("steps_per_generation") or accumulated)
        return max(1, sampled // (recipe.get("num_generations") or workload.NUM_GENERATIONS))

    def _parents(self, readers: Iterable[Job]) -> list[Job]:
        """SFT jobs whose checkpoints RL and evaluations of features can start from: a base model has no bridge."""
        wanted = {self._form(job) for job in readers if self._model(job).encoder}
        tuning = [job for job in reversed(self._all) if job.kind == "sft" and self._form(job) in wanted]
        return list({self._form(job): job for job in tuning}.values())

    def _parent(self, job: Job) -> None:
        """A checkpoint of one step of SFT."""
        recipe = _at_once(self._recipe(self.timing.trained(job))) | {"examples": self._batch(job)}
        command = self._tuning(job, recipe, epochs=1)
        self._tuned[self._form(job)] = command.words[command.words.index("--output") + 1]
        self.trials.run(command)

    def _form(self, job: Job) -> tuple[str, str, str | None]:
        model = self._model(job)
        return model.backbone, model.sequences, model.encoder

    def _start_of(self, job: Job) -> str:
        """The checkpoint that RL or an evaluation starts from here."""
        return self._tuned.get(self._form(job), checkpoint(f"models/{self._model(job).backbone}/base"))

    def _read(self, model: Model) -> dict[str, Path]:
        """The options data and bank of a command."""
        data = self._data[self._banked(model), str(model.task)]
        return {"data": data} | ({"bank": data.parent / "bank"} if self._banked(model) else {})

    def _recipe(self, model: Model) -> dict[str, Any]:
        return {key: value for key, value in self.study.stage(model).items() if key != "fraction"}

    def _tuning(self, job: Job, recipe: Mapping[str, Any], epochs: float) -> Command:
        model = self.timing.trained(job)
        parent = self._start_of(job) if job.kind == "rl" else checkpoint(f"models/{model.backbone}/base")
        return self._command(job, parent=parent, previous=None, recipe=recipe, epochs=epochs, **self._read(model))

    def _stage(self, job: Job) -> None:
        """CPT and SFT from the base, or RL, for some seconds."""
        model = self.timing.trained(job)
        if job.kind == "cpt":
            cards = [files.read_json(self._here / need / "card.json") for need in job.needs if "tokens/" in need]
            tokens = self.study.recipe("cpt", str(model.cpt))["num_train_epochs"] * sum(
                card["train"]["tokens"] for card in cards
            )
            command = self._command(job)
        else:
            rows = probe_data.rows(self._read(model)["data"], "train")
            examples = min(rows, workload.rows_used(self.study.recipe(job.kind, str(model.recipe)), rows))
            lengths = self.timing.lengths[model.backbone, str(model.task)]
            each = lengths.prompt + lengths.completion
            if job.kind == "rl":
                recipe = self.study.recipe("rl", str(model.rl))
                limit = recipe.get("max_completion_length") or workload.MAX_COMPLETION_LENGTH
                each = (lengths.prompt + limit) * (recipe.get("num_generations") or workload.NUM_GENERATIONS)
            tokens = model.epochs * examples * each
            command = self._tuning(job, self._recipe(model) | {"examples": examples}, model.epochs)
        trial = self.trials.run(command, SECONDS)
        self.costs[*self._key(job), START] = trial.start + trial.end
        self.costs[*self._key(job), "token"] = trial.unit * trial.total / tokens

    def _perplexity(self, job: Job) -> None:
        """On the first tokens of each corpus."""
        backbone = job.name.partition("/")[0]
        sources = [self._here / "tokens" / pair[0] / pair[1] for pair in self.study.tokenized if pair[0] == backbone]
        folder = self._here / f"tokens-{next(self._numbers)}"
        tokens = sum(probe_data.cut_heldout(source, folder / source.name, HELDOUT) for source in sources)
        output = self._perplexities[self.timing.network(backbone)] = folder / "perplexity.json"
        base, cut = checkpoint(f"models/{backbone}/base"), [folder / source.name for source in sources]
        trial = self.trials.run(self._command(job, checkpoint=base, tokens=cut, output=output))
        self.costs[*self._key(job), "token"] = trial.seconds / tokens

    def _evaluate(self, job: Job) -> None:
        """An evaluation of some rows: of one token, of all, and of the scores alone.

        Outputs of a model that has not learned to answer have no labels to score. So the outputs that it has saved are
        replaced by those of train, and the evaluation resumes.
        """
        model, key, task = self.timing.evaluated(job), self._key(job), str(self.timing.evaluated(job).task)
        options = self.study.evaluation | {"samples": 0, "shots": 0, "calibration": False}
        limit, lengths = options["max_new_tokens"], self.timing.lengths[model.backbone, task]
        read = self._read(model)
        rows = min(self._rows_in_time(model, limit), *(probe_data.rows(read["data"], split) for split in TEST_SPLITS))
        read["data"] = self._copy(read["data"], dict.fromkeys(TEST_SPLITS, rows))
        options["batch_size"] = rows  # a batch of each split, the second of which is timed
        start = self._start_of(job)
        count = len(TEST_SPLITS) * rows

        def run(command: Command | None = None, **more: object) -> tuple[Trial, Command]:
            work = {"work": command.work} if command else {}
            command = self._command(job, checkpoint=start, options=options | more, **read, **work)
            return self.trials.run(command), command

        one, _ = run(max_new_tokens=1)
        whole, command = run()
        assert command.work
        outputs = files.read_json(command.work / SAVED)["splits"][TEST_SPLITS[-1]]["outputs"]["tokens"]
        slowest = options.get("engine") != "vllm"  # then a batch takes as long as its longest output
        steps = max(outputs) if slowest else sum(outputs) / rows
        taught = self._completions[model.backbone, task]
        probe_data.teach(command.work, taught)
        scored, _ = run(command)
        self.costs[*key, START] = one.start
        self.costs[*key, "prompt token"] = one.unit / lengths.prompt
        self.costs[*key, "new token"] = max(0.0, whole.unit - one.unit) / max(1.0, steps - 1)
        self.costs[*key, "scores"] = scored.seconds
        if self.study.evaluation.get("calibration"):
            probe_data.teach(command.work, taught)
            labelled, command = run(command, calibration=True)
            labels = max(0.0, labelled.seconds - scored.seconds - one.start)
            self.costs[*key, "label"] = labels / (count * max(1, lengths.labels))
        output = self.trials.folder / command.words[command.words.index("--output") + 1]
        self._evaluated = task, output, count

    def _rows_in_time(self, model: Model, limit: int) -> int:
        """Rows of a split that this backbone can answer in about SECONDS, if it writes as fast as SFT trains it."""
        key = ("sft", self.timing.network(model.backbone), self.timing.form(model), "token")
        return int(max(FEW, min(self.study.evaluation["batch_size"], SECONDS / (limit * self.costs.get(key, 0.01)))))

    # --- The report ---

    def _report(self) -> None:
        """The report of the lineages of one task, in which every model has the same evaluation."""
        task, evaluation, rows = self._evaluated
        entries = [entry | {"tasks": [task]} for entry in self.study.config["lineages"] if task in entry["tasks"]]
        part = load(self.study.config | {"lineages": entries})
        folder = self._results_of(part, evaluation)
        for job in jobs(part):
            if job.kind in REPORT:
                output = folder / "studies" / ("figures" if job.kind == "figures" else "")
                options = {"results": folder, "metrics": folder / "studies", "config": as_json(part.config)}
                trial = self.trials.run(self._command(job, output=output, **options))
                units = len(part.evaluations()) * (1 if REPORT[job.kind] == "evaluation" else rows)
                self.costs[job.kind, REPORT[job.kind]] = trial.seconds / units

    def _results_of(self, part: Study, evaluation: Path) -> Path:
        """A folder with what the report of a part of the study reads: links to what was measured here."""
        folder = self._here / f"report-{next(self._numbers)}"
        for job in jobs(part):
            source = evaluation if job.kind == "evaluate" else self._here / job.output
            if job.kind == "rl":
                logged = {"step": 1, "epoch": 1.0, "reward": 0.5, "reward_std": 0.5, "frac_reward_zero_std": 0.5}
                files.write_json(folder / job.output / "history.json", [logged])
            if job.kind == "perplexity":
                source = self._perplexities.get(self.timing.network(job.name.partition("/")[0]), source)
            if job.kind in ("evaluate", "perplexity", "data", "baselines"):
                source = source if source.exists() else self._done / job.output
                (folder / job.output).parent.mkdir(parents=True, exist_ok=True)
                (folder / job.output).symlink_to(source)
        return folder


def _whole(trial: Trial) -> float:
    """Seconds of a whole command, also of one that was stopped."""
    return trial.start + trial.unit * trial.total + trial.end


def _at_once(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without warm-up, whose first step would change no weight."""
    schedule = ("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio")
    return {key: value for key, value in recipe.items() if key not in schedule} | {"lr_scheduler_type": "constant"}
