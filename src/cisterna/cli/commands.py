"""The commands of `cisterna`: first those that people run, then those of the workflow's rules.

Each is a function, which `command` puts into COMMANDS with its options. It imports what it needs when it runs, so that
`cisterna --help` imports no library.
"""

import json
from pathlib import Path
from typing import Any

from cisterna.artifacts import files
from cisterna.artifacts.work_folder import SAVE_MINUTES
from cisterna.cli.registry import (
    CONFIG,
    DATA,
    EVALUATION,
    JSON,
    OUTPUT,
    RESULTS,
    SEED,
    SEQUENCES,
    STAGE,
    WORK,
    Config,
    command,
    config_files,
    mapping,
    option,
    path,
    read_study,
)
from cisterna.errors import UserError

# --- Run by people ---


@command(
    path("table", metavar="TABLE", help="csv, tsv, Parquet or JSON lines"),
    option("--label", metavar="COLUMN", default=None, help="the column of the answers (default: where it is clear)"),
    option(
        "--threshold",
        dest="thresholds",
        type=float,
        action="append",
        default=[],
        metavar="X",
        help="cut the label, a number, into classes: below X, and from X; repeat it for more classes",
    ),
    option("--classes", nargs="+", default=[], metavar="NAME", help="with --threshold: the classes, from low to high"),
    path("--output", default=Path("my-study.yaml"), help="a new file (default: %(default)s)"),
)
def init(table: Path, label: str | None, thresholds: list[float], classes: list[str], output: Path) -> None:
    """Draft a study of a table of your own: a config with comments, and with questions where it is not clear."""
    from cisterna.drafting import draft

    draft.main(table, label, thresholds, classes, output)


@command(
    CONFIG,
    option("--calibrate", action="store_true", help="run short pieces of its jobs, and estimate the hours here"),
    option("--cores", type=int, metavar="N", default=None, help="with --calibrate: as of snakemake (default: all)"),
)
def plan(config: Config, calibrate: bool, cores: int | None) -> None:
    """Print what a study would train: models, jobs, shared stages, examples, tokens."""
    from cisterna.ops import plan

    plan.main(*config_files(config), calibrated=calibrate, cores=cores)


@command(path("path", help="e.g. results/models/.../e2/checkpoint"), CONFIG)
def train(path: Path, config: Config) -> None:
    """Make one checkpoint or feature bank of a study, with the options that the config gives it."""
    from cisterna.runtime import commands

    commands.run(read_study(config), path, *commands.TRAINING)


@command(
    path("path", nargs="?", help="e.g. results/models/.../e2/eval; or give the options below, as the workflow does"),
    CONFIG,
    path("--checkpoint", default=None, help="what to evaluate"),
    path("--data", default=None, help="folder made by `data`"),
    path("--bank", default=None, help="feature bank of the task (default: run the encoder)"),
    mapping("--options", default=None, help="the config's evaluation block"),
    path("--work", default=None, help="folder for answers until all are published (default: none)"),
    path("--output", default=None, help="what to write"),
    heavy=True,
)
def evaluate(
    path: Path | None,
    config: Config,
    checkpoint: Path | None,
    data: Path | None,
    bank: Path | None,
    options: JSON | None,
    work: Path | None,
    output: Path | None,
) -> None:
    """Evaluate a checkpoint on the id and ood splits of its task."""
    if path:
        from cisterna.runtime import commands

        commands.run(read_study(config), path, "evaluate")
    if checkpoint is None or data is None or options is None or output is None:
        raise UserError("evaluate: expected a PATH, or --checkpoint, --data, --options and --output")
    from cisterna.evaluation import evaluate
    from cisterna.study.config import evaluation_options

    evaluate.evaluate(checkpoint, data, output, evaluation_options(options), bank, work)


@command(
    path("data", help="a folder results/data/TASK"),
    path("--output", default=None, help="JSON file for what was checked"),
)
def audit(data: Path, output: Path | None) -> None:
    """Check the splits of a prepared task for leakage."""
    from cisterna.data.audit import audit_folder

    checked = audit_folder(data)
    print(json.dumps(checked, indent=1))
    if output:
        files.write_json(output, checked)


@command(
    path("checkpoint", metavar="CHECKPOINT", help="e.g. results/models/.../e2/checkpoint"),
    path("--input", help="csv, tsv, Parquet or JSON lines with the new rows; cells also .h5ad"),
    path("--output", help="csv, tsv, Parquet or JSON lines, by its extension; one row per input row"),
    mapping("--options", default={}, help="keys of the config's evaluation block that differ from their defaults"),
    option(
        "--probabilities", action="store_true", help="also the probability of each label: columns probability:LABEL"
    ),
    option(
        "--columns",
        nargs="+",
        default=(),
        metavar="NAME",
        help="only these columns, in this order; the name of a label gives its probability, `answer` the prediction",
    ),
    path(
        "--features", nargs="+", default=(), metavar="FILE", help="precomputed features of the new rows, by their ids"
    ),
    heavy=True,
)
def predict(
    checkpoint: Path,
    input: Path,
    output: Path,
    options: JSON,
    probabilities: bool,
    columns: list[str],
    features: list[Path],
) -> None:
    """Answer new rows with a checkpoint of SFT or RL."""
    from cisterna.evaluation import predict
    from cisterna.study.config import evaluation_options

    predict.predict(checkpoint, input, output, evaluation_options(options), columns, probabilities, features)


@command(
    path("checkpoint", metavar="CHECKPOINT", help="e.g. results/models/.../e2/checkpoint"),
    path("--output", help="a new folder: weights, tokenizer, model card"),
    option("--adapter", action="store_true", help="one LoRA adapter for PEFT, and not the merged weights"),
    option(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        default=None,
        help="type of the weights (default: that of the base, or float32 where rounding to it would lose the update)",
    ),
    heavy=True,
)
def export(checkpoint: Path, output: Path, adapter: bool, dtype: str | None) -> None:
    """Write a checkpoint as a folder that transformers or PEFT loads without Cisterna."""
    from cisterna.publishing import export

    export.export(checkpoint, output, adapter, dtype)


@command(
    option("--partial", action="store_true", help="of the finished jobs only, into results/studies/NAME/partial"),
    CONFIG,
)
def report(partial: bool, config: Config) -> None:
    """Write the tables and figures of a study into results/studies/NAME."""
    from cisterna.report import figures, findings, gather, quotes

    study = read_study(config)
    results = Path("results")
    folder = results / "studies" / study.name
    if partial:
        folder /= "partial"
    gather.gather(study, results, folder, partial)
    figures.figures(study, folder, folder / "figures")
    quotes.quotes(study, results, folder, partial)
    if not partial:
        findings.findings(study, results, folder)
    print(f"The report is at {folder / 'figures' / 'table.html'}")


@command(
    CONFIG,
    option("--budget-epochs", type=int, metavar="N", default=None, help="epochs to divide between SFT and RL"),
    RESULTS,
    path("--output", default=None, help="JSON file for the same (default: none)"),
)
def advise(config: Config, budget_epochs: int | None, results: Path, output: Path | None) -> None:
    """Print which stages of a study are best, ID and OOD, and how to divide epochs, each with its uncertainty."""
    from cisterna.report import advice

    advice.main(config_files(config), budget_epochs, results, output)


@command(
    path("path", nargs="?", default=Path("results"), help="only jobs below this folder"),
    CONFIG,
    option("--watch", action="store_true", help="keep it up to date, until Ctrl-C"),
)
def status(path: Path, config: Config, watch: bool) -> None:
    """Print the state of a study: running stages with their progress, jobs done and failed."""
    from cisterna.ops import status

    status.main(config_files(config), path, watch)


@command(path("path", nargs="?", default=Path("results"), help="(default: %(default)s)"))
def verify(path: Path) -> None:
    """Check every manifest, hash and parent below a folder; exit code 2 if one is broken."""
    from cisterna.ops import verify

    print(verify.verify(path))


@command(
    option(
        "--config",
        nargs="+",
        action="extend",
        metavar="FILE",
        help=f"the config of every study whose results should stay (default: {files.DEFAULT_CONFIG})",
    ),
    option("--finished", action="store_true", help="also the state of finished ladders, needed only to add rungs"),
    option("--yes", action="store_true", help="remove what is listed"),
)
def clean(config: Config, finished: bool, yes: bool) -> None:
    """List results that no given config uses, and files that killed processes left in results/."""
    from cisterna.ops import clean

    clean.clean(config_files(config), yes=yes, finished=finished)


# --- Run by the rules of the workflow, as `evaluate` above, which also takes a path ---


@command(mapping("--members", help="evaluation -> what it reads"), EVALUATION, WORK, OUTPUT, by_rule=True, heavy=True)
def answers(members: JSON, options: JSON, work: Path, output: Path) -> None:
    """Answer for several evaluations with one engine; `evaluate` then finds the answers in their work folders."""
    from cisterna.evaluation import answering
    from cisterna.study.config import evaluation_options

    answering.answer_group(members, evaluation_options(options), work, output)


@command(option("--task"), mapping("--spec", help="the task's block of the config"), SEED, OUTPUT, by_rule=True)
def data(task: str, spec: JSON, seed: int, output: Path) -> None:
    """Split a task's examples into train, validation, id, ood and audit them for leakage."""
    from cisterna.data import splits

    splits.prepare(task, spec, seed, output)


@command(DATA, EVALUATION, OUTPUT, by_rule=True, heavy=True)
def baselines(data: Path, options: JSON, output: Path) -> None:
    """Majority, k-NN, logistic regression and gradient boosting on a task's splits."""
    from cisterna.evaluation import baselines
    from cisterna.scoring import answers
    from cisterna.study.config import evaluation_options

    chosen = evaluation_options(options)
    card = files.read_json(data / "card.json")
    space, seed, resamples = answers.load_space(card, data), int(chosen.get("seed", 0)), int(chosen["bootstrap"])
    baselines.run(data, output, space=space, card=card, seed=seed, bootstrap=resamples)


@command(mapping("--spec", help="the backbone's block of the config"), OUTPUT, by_rule=True, heavy=True)
def base(spec: JSON, output: Path) -> None:
    """Make a backbone's base checkpoint and tokenizer."""
    from cisterna import models

    models.make_base(spec, output)


@command(
    path("--corpus", help="sequences or text; the ending says in which form"),
    option("--modality", choices=["dna", "rna", "protein", "text"]),
    mapping("--options", default={}, help="the corpus's other keys of the config"),
    path("--base", help="base checkpoint, for its tokenizer"),
    OUTPUT,
    by_rule=True,
    heavy=True,
)
def tokenize(corpus: Path, modality: str, options: JSON, base: Path, output: Path) -> None:
    """Tokenize a corpus into a memory-mapped stream."""
    from cisterna.data.tokenized import tokenize_corpus

    print(json.dumps(tokenize_corpus(corpus, modality, base, output, options), indent=1))


@command(
    mapping("--spec", help="what makes the encoder"),
    mapping("--corpora", default={}, help="name -> file and modality"),
    WORK,
    OUTPUT,
    by_rule=True,
    heavy=True,
)
def encoder(spec: JSON, corpora: JSON, work: Path, output: Path) -> None:
    """Make an encoder, or publish which pretrained one, or whose features, it is."""
    if "pretrained" in spec or "features" in spec:
        from cisterna.sequences import encoders

        encoders.refer(spec, output)
        return
    from cisterna.training import encoder

    encoder.train(spec, corpora, work, output)


@command(
    path("--encoder", help="checkpoint folder made by `encoder`"),
    DATA,
    mapping("--reading", help="how the encoder is read"),
    WORK,
    option("--save-minutes", type=float, default=SAVE_MINUTES, help="how often to save (default: %(default)s)"),
    OUTPUT,
    by_rule=True,
    heavy=True,
)
def features(encoder: Path, data: Path, reading: JSON, work: Path, save_minutes: float, output: Path) -> None:
    """Compute the feature bank (embedding cache) of a task's sequences."""
    from cisterna.sequences import feature_bank

    feature_bank.build_for_task(encoder, data, reading, work, output, save_minutes)


@command(path("--tokens", nargs="+", help="folders made by `tokenize`"), *STAGE, by_rule=True, heavy=True)
def cpt(tokens: list[Path], **stage: Any) -> None:
    """Continue pre-training on corpora."""
    from cisterna.training import cpt
    from cisterna.training.stage import StageArguments

    cpt.train(StageArguments(kind="cpt", **stage), tokens)


@command(*SEQUENCES, *STAGE, by_rule=True, heavy=True)
def sft(**options: Any) -> None:
    """Fine-tune on a task's reasoning traces and answers."""
    from cisterna.training import sft

    sft.train(*_stage("sft", **options))


@command(*SEQUENCES, *STAGE, by_rule=True, heavy=True)
def rl(**options: Any) -> None:
    """Train by GRPO on a task's verifiable rewards."""
    from cisterna.training import rl

    rl.train(*_stage("rl", **options))


def _stage(
    kind: str, data: Path, sequences: str, bank: Path | None, encoder: Path | None, reading: JSON | None, **stage: Any
) -> tuple[Any, Path, Any]:
    """What SFT and RL are called with: the options STAGE, the task's data, and the source of its sequences."""
    from cisterna.sequences.source import open_source
    from cisterna.training.run import one_gpu
    from cisterna.training.stage import StageArguments

    one_gpu()
    modality = files.read_json(data / "card.json")["modality"]
    return StageArguments(kind=kind, **stage), data, open_source(sequences, modality, bank, encoder, reading)


@command(
    path("--checkpoint"),
    path("--tokens", nargs="+", help="folders made by `tokenize`"),
    option("--block-size", type=int, default=256),
    OUTPUT,
    by_rule=True,
    heavy=True,
)
def perplexity(checkpoint: Path, tokens: list[Path], block_size: int, output: Path) -> None:
    """Measure a checkpoint's perplexity on held-out corpora."""
    from cisterna.evaluation import perplexity

    perplexity.perplexity(checkpoint, tokens, output, block_size)


@command(RESULTS, CONFIG, OUTPUT, by_rule=True)
def gather(results: Path, config: Config, output: Path) -> None:
    """Collect a study's metrics into one table."""
    from cisterna.report import gather

    gather.gather(read_study(config), results, output)


@command(path("--metrics", help="folder made by `gather`"), CONFIG, OUTPUT, by_rule=True)
def figures(metrics: Path, config: Config, output: Path) -> None:
    """Draw a study's figures and results table."""
    from cisterna.report import figures

    figures.figures(read_study(config), metrics, output)


@command(RESULTS, CONFIG, OUTPUT, by_rule=True)
def findings(results: Path, config: Config, output: Path) -> None:
    """Test the paper's claims on a study's answers."""
    from cisterna.report import findings

    findings.findings(read_study(config), results, output)


@command(RESULTS, CONFIG, OUTPUT, by_rule=True)
def quotes(results: Path, config: Config, output: Path) -> None:
    """Show what a study's models wrote, for a few examples."""
    from cisterna.report import quotes

    quotes.quotes(read_study(config), results, output)
