"""Measures what the parts of a study's jobs cost on this machine, in about a minute for each backbone.

For each kind of job, backbone, recipe and form of the sequences one job of the study runs, by its own command, in a
temporary folder: first with the least that it can do, then with more. A line through the two tells its start from its
steps (`cisterna.ops.timing`). Data are prepared as in the study and then cut to MOST rows a split. The parent of a
stage is a base model, or one that SFT has trained for a few steps: the weights change no time, but for what a model
writes, and that is told from the examples (`timing.written`).
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cisterna.artifacts import files
from cisterna.constants import SPLITS, TEST_SPLITS
from cisterna.data import splits
from cisterna.ops import probe_data, timing, workload
from cisterna.ops.stopwatch import Chain, Command, Cost, Stopwatch
from cisterna.ops.timing import START, Lengths, Part, Timing
from cisterna.runtime import commands
from cisterna.study import Model, Study, load
from cisterna.study.inputs import as_json, checkpoint
from cisterna.study.jobs import Job, asked_as, jobs

MINUTE = 60.0  # seconds of measuring for a backbone, shared by its stages, evaluations and perplexities
LEAST = 4.0  # seconds for one of them
REPORT = {"gather": "row", "figures": "evaluation", "findings": "row", "quotes": "row"}  # what their time grows with
MOST = 1000  # rows of a split that are used here
LARGE = 20e6  # tokens of a corpus of which only DOCUMENTS are tokenized here
DOCUMENTS = {"train_documents": 2000, "heldout_documents": 200}
LEAST_GROWTH, GROWTH = 3, 8  # by how much a measurement is larger than the one before, at least and at most
STEPS = 16  # tokens of each output when generation is first measured
BLOCK = 256  # tokens of a block of perplexity
FEW = 32  # rows of a split when an evaluation is first measured

Points = list[tuple[int, Cost]]
Growing = Generator[Command, Cost, Points]


class Probes:
    """The measurements of a study, in `costs`. `todo` are the jobs whose parts are measured.

    `results` has what is done already: prepared data, base models, encoders and tokens are read from there.
    """

    def __init__(self, study: Study, todo: Sequence[Job], results: Path, stopwatch: Stopwatch) -> None:
        self.study, self.todo, self.stopwatch = study, todo, stopwatch
        self.costs: dict[Part, Cost] = {}
        self._done, self._here = results.absolute(), stopwatch.folder / "results"
        self._here.mkdir()
        self._all = jobs(study)
        self._completions: dict[tuple[str, str], list[list[int]]] = {}  # (backbone, task) -> what train teaches
        self._data: dict[tuple[str | None, str], Path] = {}  # (encoder of a bank, or None; task) -> the cut data
        self._tuned: dict[tuple[str, str], str] = {}  # (backbone, form) -> checkpoint of SFT
        self._perplexities: dict[str, Path] = {}  # backbone -> a file of perplexities
        self._large = {
            pair: tokens for pair, tokens in workload.measure(study, results).corpora.items() if tokens > LARGE
        }
        self._count = 0

    def run(self) -> Timing:
        """Measure; returns the timing of the study, whose parts have costs. UserError if a command fails."""
        measure, kinds = self.stopwatch.measure, {job.kind for job in self.todo}
        of_kind = {kind: [job for job in self.todo if job.kind == kind] for kind in kinds}
        self._seconds = MINUTE / 4  # of an encoder
        measure(filter(None, (self._prepare(job) for job in self._all if job.kind in ("data", "base", "encoder"))))
        for task in self.study.tasks:
            self._data[None, task] = self._cut(task, MOST)
        measure(filter(None, (self._prepare(job) for job in self._all if job.kind == "tokenize")))
        self.timing = self._timing()
        chosen = {kind: self._one_of_each(of_kind.get(kind, [])) for kind in ("cpt", "rl", "evaluate", "perplexity")}
        chosen["sft"] = self._one_of_each(of_kind.get("sft", []))
        if kinds & REPORT.keys() and not chosen["evaluate"]:  # the report needs one
            chosen["evaluate"] = [job for job in self._all if job.kind == "evaluate"][:1]
        chosen["sft"] += self._parents([*chosen["rl"], *chosen["evaluate"]], chosen["sft"])
        count = max(1, sum(map(len, chosen.values())))
        self._seconds = max(LEAST, MINUTE * len(self.study.backbones) / count)
        measure([*self._banks(chosen), *map(self._baselines, of_kind.get("baselines", []))])
        first = [*map(self._cpt, chosen["cpt"]), *map(self._perplexity, chosen["perplexity"])]
        measure([*first, *map(self._tune, chosen["sft"])])
        measure([*map(self._tune, chosen["rl"]), *map(self._evaluate, chosen["evaluate"])])
        if kinds & REPORT.keys():
            measure([self._report()])
        return self.timing

    # --- What is measured ---

    def _one_of_each(self, all_jobs: Iterable[Job]) -> list[Job]:
        """The first job of those that have the same parts, by what comes before their units."""
        return list({self._key(job): job for job in reversed(list(all_jobs))}.values())

    def _parents(self, readers: Iterable[Job], known: Sequence[Job]) -> list[Job]:
        """SFT jobs beside `known` that RL and evaluations can start from, one for each backbone and form."""
        have = {self._form_of(job) for job in known}
        found: dict[tuple[str, str], Job] = {}
        wanted = {self._form_of(job) for job in readers} - have
        for job in self._all:
            if job.kind == "sft" and self._form_of(job) in wanted:
                found.setdefault(self._form_of(job), job)
        return list(found.values())

    def _model(self, job: Job) -> Model:
        return self.timing.evaluated(job) if job.kind == "evaluate" else self.timing.trained(job)

    def _form_of(self, job: Job) -> tuple[str, str]:
        model = self._model(job)
        return model.backbone, timing.form(model)

    def _banked(self, model: Model) -> str | None:
        """The encoder of the bank that a model reads, if it reads one."""
        return model.encoder if self.study.bank(model) else None

    # --- Commands ---

    def _command(self, job: Job, **options: object) -> Command:
        """The command of a job with other values of some options; None leaves an option out. A new work folder."""
        words = commands.command(self.study, job)
        self._count += 1
        options.setdefault("output", f"results/probe-{self._count}/{Path(job.output).name}")
        if job.work:
            options.setdefault("work", f"results/.work/probe-{self._count}")
        for name, value in options.items():
            flag, text = f"--{name}", as_json(value) if isinstance(value, Mapping) else str(value)
            if flag in words:
                place = words.index(flag)
                end = next((at for at in range(place + 1, len(words)) if words[at].startswith("--")), len(words))
                values = list(map(str, value)) if isinstance(value, list | tuple) else [text]
                words[place:end] = [flag, *values] if value is not None else []
        return Command(words, self.threads(job))

    def threads(self, job: Job) -> int:
        """Threads of a job."""
        return self.study.resources(asked_as(job.kind))["threads"]

    def _grow(self, first: int, most: int, command: Callable[[int], Command]) -> Growing:
        """Measure `command(n)` for two n or more, from `first` on, until it has taken long enough to be measured well.

        One alone would count the start as work: loading a large model takes as long as a few steps.
        """
        n, points = min(first, most), Points()
        while True:
            made = command(n)
            cost = yield made
            points.append((n, cost))
            spent = max(timing.seconds(cost, made.threads, self.stopwatch.gpus, busy=True), 1e-3)
            if n >= most or (len(points) > 1 and spent >= self._seconds / 2):
                return points
            larger = min(GROWTH * n, round(n * self._seconds / spent))
            n = min(most, max(larger - larger % first, LEAST_GROWTH * n))

    def _keep(self, key: Part, unit: str, size: float, points: Points) -> None:
        """Put the costs of a start and of a unit into `costs`; a point has `size` units for each that it counts."""
        self.costs[*key, START], self.costs[*key, unit] = timing.fit([(n * size, cost) for n, cost in points])

    # --- Data, base models, corpora, encoders ---

    def _prepare(self, job: Job) -> Chain | None:
        """The job itself, measured, unless its result is there; then a link to that."""
        place = self._here / job.output
        if (self._done / job.proof).exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(self._done / job.output)
            return None
        if job.kind == "tokenize":
            return self._tokenize(job)
        if job.kind == "encoder" and "training" in self.study.encoder(job.name):
            return self._encoder(job)
        return self._whole(job)

    def _whole(self, job: Job) -> Chain:
        self.costs[job.kind, job.name, START] = yield self._command(job, output=f"results/{job.output}")

    def _tokenize(self, job: Job) -> Chain:
        backbone, _, corpus = job.name.partition("/")
        options = self.study.documents(corpus)
        if (backbone, corpus) in self._large:
            options |= {key: min(options.get(key, most), most) for key, most in DOCUMENTS.items()}
        cost = yield self._command(job, options=options, output=f"results/{job.output}")
        tokens = files.read_json(self._here / job.proof)["train"]["tokens"]
        self.costs["tokenize", job.name, "token"] = cost.times(1 / tokens)

    def _encoder(self, job: Job) -> Chain:
        """Training for less than it takes in the study. The last of these encoders makes the features here."""
        spec = self.study.encoder(job.name)
        epochs = spec["training"]["num_train_epochs"]
        made: list[Path] = []

        def command(hundredths: int) -> Command:
            training = _at_once(spec["training"]) | {"num_train_epochs": epochs * hundredths / 100}
            made.append(Path(f"results/probe-{self._count + 1}/checkpoint"))
            return self._command(job, spec=spec | {"training": training})

        points = yield from self._grow(2, 100, command)
        self._keep(("encoder", job.name), "epoch", epochs / 100, points)
        place = self._here / job.output
        place.parent.mkdir(parents=True)
        place.symlink_to(self.stopwatch.folder / made[-1])

    def _cut(self, task: str, rows: int) -> Path:
        """The data of a task with at most so many rows a split."""
        source = self._here / "data" / task
        card = splits.read_card(source)
        if all(card["splits"][split]["rows"] <= rows for split in SPLITS):
            return source
        return self._copy(source, dict.fromkeys(SPLITS, rows))

    def _copy(self, source: Path, rows: Mapping[str, int]) -> Path:
        """A copy of prepared data with the first so many rows of some splits, in a new folder."""
        self._count += 1
        return probe_data.cut_rows(source, self._here / f"data-{self._count}" / source.name, rows)

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
        base = self.stopwatch.folder / checkpoint(f"models/{backbone}/base")
        lengths, self._completions[backbone, task] = probe_data.lengths(base, self._data[None, task])
        return lengths

    # --- Jobs of a study ---

    def _baselines(self, job: Job) -> Chain:
        data = self._data[None, job.name]
        cost = yield self._command(job, data=data, output=f"results/{job.output}")
        self.costs["baselines", job.name, "row"] = cost.times(1 / sum(probe_data.rows(data, split) for split in SPLITS))

    def _banks(self, chosen: Mapping[str, Sequence[Job]]) -> Iterator[Chain]:
        """Banks of the data that the other measurements read, and of those whose time is asked for."""
        read = [self._model(job) for kind in ("sft", "rl", "evaluate") for job in chosen[kind]]
        pairs = {(str(self._banked(model)), str(model.task)) for model in read if self._banked(model)}
        for encoder in {job.name.partition("/")[0] for job in self.todo if job.kind == "features"}:
            if not any(encoder == other for other, _ in pairs):
                pairs.add(next(pair for pair in self.study.banks if pair[0] == encoder))
        for pair in sorted(pairs):
            yield self._bank(*pair)

    def _bank(self, encoder: str, task: str) -> Chain:
        job = next(job for job in self._all if job.kind == "features" and job.name == f"{encoder}/{task}")
        source, made = self._data[None, task], list[Path]()
        first = max([FEW, *(self._batch(job) for job in self._all if job.kind in ("sft", "rl"))])

        def command(rows: int) -> Command:
            made.append(self._copy(source, dict.fromkeys(SPLITS, rows)))
            return self._command(job, data=made[-1], output=made[-1].parent / "bank")

        points = yield from self._grow(first, max(probe_data.rows(source, split) for split in SPLITS), command)
        points = [
            (sum(probe_data.rows(data, split) for split in SPLITS), cost)
            for data, (_, cost) in zip(made, points, strict=True)
        ]
        self._keep(("features", encoder), "row", 1, points)
        self._data[encoder, task] = made[-1]

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

    def _cpt(self, job: Job) -> Chain:
        model = self.timing.trained(job)
        recipe = self.study.recipe("cpt", str(model.cpt))
        step = self._batch(job) * recipe["block_size"]
        cards = [files.read_json(self._here / need / "card.json") for need in job.needs if need.startswith("tokens/")]
        epoch = sum(card["train"]["tokens"] for card in cards)
        most = max(1, round(self.timing.work.of(model).tokens / step))
        recipe = _at_once(self.study.stage(model))

        def command(steps: int) -> Command:
            return self._command(job, recipe=recipe, epochs=steps * step / epoch)

        points = yield from self._grow(1, most, command)
        self._keep(self._key(job), "token", step, points)

    def _tune(self, job: Job) -> Chain:
        """SFT from the base, or RL from a checkpoint of that, on the first examples of train."""
        model = self.timing.trained(job)
        data = self._data[self._banked(model), str(model.task)]
        base = checkpoint(f"models/{model.backbone}/base")
        parent = base if job.kind == "sft" else self._tuned.get(self._form_of(job), base)
        bank = {"bank": data.parent / "bank"} if self._banked(model) else {}
        recipe = _at_once({key: value for key, value in self.study.stage(model).items() if key != "fraction"})

        def command(examples: int) -> Command:
            options = {"parent": parent, "previous": None, "data": data, "epochs": 1, **bank}
            output = f"results/probe-{self._count + 1}/checkpoint"
            if job.kind == "sft":
                self._tuned[self._form_of(job)] = output
            # Completions of a model that has not learned to answer all earn nothing: RL takes its steps, then refuses.
            progress = self._here / ".work" / f"probe-{self._count + 1}" / "progress.json"
            command = self._command(job, recipe=recipe | {"examples": examples}, output=output, **options)
            return command._replace(may_fail=lambda: probe_data.at_end(progress)) if job.kind == "rl" else command

        points = yield from self._grow(self._batch(job), probe_data.rows(data, "train"), command)
        lengths = self.timing.lengths[model.backbone, str(model.task)]
        tokens = lengths.prompt + lengths.completion
        if job.kind == "rl":
            limit = recipe.get("max_completion_length") or workload.MAX_COMPLETION_LENGTH
            tokens = (lengths.prompt + limit) * (recipe.get("num_generations") or workload.NUM_GENERATIONS)
        self._keep(self._key(job), "token", tokens, points)

    def _perplexity(self, job: Job) -> Chain:
        backbone = job.name.partition("/")[0]
        sources = [
            self._here / "tokens" / backbone / corpus for owner, corpus in self.study.tokenized if owner == backbone
        ]
        counted: dict[int, int] = {}

        def command(blocks: int) -> Command:
            """On the first so many blocks of each corpus."""
            self._count += 1
            folder = self._here / f"tokens-{self._count}"
            cut = [probe_data.cut_heldout(source, folder / source.name, blocks * BLOCK) for source in sources]
            counted[blocks] = sum(tokens // BLOCK * BLOCK for tokens in cut)
            base = checkpoint(f"models/{backbone}/base")
            tokens = [folder / source.name for source in sources]
            self._perplexities[backbone] = folder / "perplexity.json"
            return self._command(job, checkpoint=base, tokens=tokens, output=self._perplexities[backbone])

        most = max(len(np.load(source / "heldout.npy", mmap_mode="r")) // BLOCK for source in sources)
        points = yield from self._grow(1, most, command)
        self._keep(("perplexity", backbone), "token", 1, [(counted[blocks], cost) for blocks, cost in points])

    def _key(self, job: Job) -> Part:
        return next(part[:-1] for part in self.timing.parts(job))

    def _evaluate(self, job: Job) -> Chain:
        """An evaluation with more and more of its work, so that each part is the difference of two measurements.

        Outputs of a model that has not learned to answer have no labels to score. So the outputs that it has saved are
        replaced by those of train, and the evaluation resumes.
        """
        model, key = self.timing.evaluated(job), self._key(job)
        source = self._data[self._banked(model), str(model.task)]
        start = self._tuned.get(self._form_of(job), checkpoint(f"models/{model.backbone}/base"))
        fixed = {"checkpoint": start} | ({"bank": source.parent / "bank"} if self._banked(model) else {})
        options = self.study.evaluation | {"samples": 0, "shots": 0}
        one = self._copy(source, dict.fromkeys(TEST_SPLITS, 1))
        empty = yield self._command(job, data=one, options=options | {"max_new_tokens": 1}, **fixed)
        cut: dict[int, Path] = {}

        def read(rows: int) -> Command:
            cut[rows] = self._copy(source, dict.fromkeys(TEST_SPLITS, rows))
            return self._command(job, data=cut[rows], options=options | {"max_new_tokens": 1}, **fixed)

        most = min(options["batch_size"], max(probe_data.rows(source, split) for split in TEST_SPLITS))
        points = yield from self._grow(min(FEW, most), most, read)
        data, prompts = cut[int(points[-1][0])], points[-1][1]
        count, limit = sum(probe_data.rows(data, split) for split in TEST_SPLITS), options["max_new_tokens"]
        works: dict[int, Path] = {}

        def generate(tokens: int) -> Command:
            command = self._command(job, data=data, options=options | {"max_new_tokens": tokens}, **fixed)
            works[tokens] = self.stopwatch.folder / command.words[command.words.index("--work") + 1]
            return command

        points = yield from self._grow(min(STEPS, limit), limit, generate)
        tokens, written = int(points[-1][0]), points[-1][1]
        saved, costs = works[tokens], []
        for calibration in (False, True):
            probe_data.teach(saved, self._completions[model.backbone, str(model.task)])
            asked = options | {"max_new_tokens": tokens, "calibration": calibration}
            command = self._command(job, data=data, options=asked, work=saved, **fixed)
            costs.append((yield command))
        scored, labelled = costs
        output = self.stopwatch.folder / command.words[command.words.index("--output") + 1]
        self._evaluated = str(model.task), output, count
        lengths = self.timing.lengths[model.backbone, str(model.task)]
        self.costs[*key, START] = empty
        self.costs[*key, "scored row"] = scored.minus(empty).times(1 / count)
        self.costs[*key, "prompt token"] = prompts.minus(scored).times(1 / (count * lengths.prompt))
        self.costs[*key, "new token"] = written.minus(prompts).times(1 / (count * max(1, tokens - 1)))
        self.costs[*key, "label"] = labelled.minus(scored).times(1 / (count * max(1, lengths.labels)))

    # --- The report ---

    def _report(self) -> Chain:
        """The report of the lineages of one task, first of one of them: every model has the same evaluation."""
        task, evaluation, rows = self._evaluated
        entries = [entry | {"tasks": [task]} for entry in self.study.config["lineages"] if task in entry["tasks"]]
        points: dict[str, Points] = {kind: [] for kind in REPORT}
        units = {"row": rows, "evaluation": 1}
        for some in dict.fromkeys((1, len(entries))):
            part = load(self.study.config | {"lineages": entries[:some]})
            count = len(part.evaluations())
            folder = self._results_of(part, evaluation)
            for job in jobs(part):
                if job.kind in points:
                    output = folder / "studies" / ("figures" if job.kind == "figures" else "")
                    command = self._command(
                        job, results=folder, metrics=folder / "studies", output=output, config=as_json(part.config)
                    )
                    points[job.kind].append((count * units[REPORT[job.kind]], (yield command)))
        for kind, measured in points.items():
            self._keep((kind,), REPORT[kind], 1, measured)

    def _results_of(self, part: Study, evaluation: Path) -> Path:
        """A folder with what the report of a part of the study reads: links to what was measured here."""
        self._count += 1
        folder = self._here / f"report-{self._count}"
        for job in jobs(part):
            source = evaluation if job.kind == "evaluate" else self._here / job.output
            if job.kind == "rl":
                logged = {"step": 1, "epoch": 1.0, "reward": 0.5, "reward_std": 0.5, "frac_reward_zero_std": 0.5}
                files.write_json(folder / job.output / "history.json", [logged])
            if job.kind == "perplexity":
                source = self._perplexities.get(
                    part.model(job.output.removesuffix("/perplexity.json")).backbone, source
                )
            if job.kind in ("evaluate", "perplexity", "data", "baselines"):
                source = source if source.exists() else self._done / job.output
                (folder / job.output).parent.mkdir(parents=True, exist_ok=True)
                (folder / job.output).symlink_to(source)
        return folder


def _at_once(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without warm-up, whose first step would change no weight."""
    schedule = ("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio")
    return {key: value for key, value in recipe.items() if key not in schedule} | {"lr_scheduler_type": "constant"}
