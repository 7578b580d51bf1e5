"""The commands of `cisterna` that the rules of the workflow run, and the fork server.

`evaluate` is in `cisterna.cli.people`: it also takes a path.
"""

import json
from pathlib import Path
from typing import Any

from cisterna.artifacts.work_folder import SAVE_MINUTES
from cisterna.cli.table import CONFIG, command, mapping, option, path, read_study

JSON = dict[str, Any]

OUTPUT = path("--output", required=True, help="what to write")
WORK = path("--work", required=True, help="folder for state that a later run resumes from")
DATA = path("--data", required=True, help="folder made by `data`")
SEED = option("--seed", type=int, default=0)
STAGE = (
    path("--parent", required=True, help="checkpoint to start from"),
    mapping("--recipe", required=True, help="the recipe's block of the config"),
    SEED,
    option("--epochs", type=float, required=True),
    path("--previous", help="the rung before, in a ladder"),
    WORK,
    OUTPUT,
)
SEQUENCES = (
    DATA,
    option("--sequences", choices=["tokens", "features", "both"], default="tokens"),
    path("--bank", help="folder made by `features`"),
    path("--encoder", help="in place of a bank: the encoder, to run in every step"),
    mapping("--reading", help="with --encoder: how it is read"),
)


@command(
    option("--task", required=True),
    mapping("--spec", required=True, help="the task's block of the config"),
    SEED,
    OUTPUT,
    by_rule=True,
)
def data(task: str, spec: JSON, seed: int, output: Path) -> None:
    """Split a task's examples into train, validation, id, ood and audit them for leakage."""
    from cisterna.data import splits

    splits.prepare(task, spec, seed, output)


@command(
    DATA,
    mapping("--options", required=True, help="the config's evaluation block"),
    OUTPUT,
    by_rule=True,
    heavy=True,
)
def baselines(data: Path, options: JSON, output: Path) -> None:
    """Majority, k-NN and logistic regression on a task's splits."""
    from cisterna.artifacts import files
    from cisterna.evaluation import baselines
    from cisterna.scoring import answers
    from cisterna.study.config import evaluation_options

    chosen = evaluation_options(options)
    card = files.read_json(data / "card.json")
    baselines.run(
        data,
        output,
        space=answers.load_space(card, data),
        modality=card["modality"],
        seed=int(chosen.get("seed", 0)),
        bootstrap=int(chosen["bootstrap"]),
    )


@command(
    mapping("--spec", required=True, help="the backbone's block of the config"),
    OUTPUT,
    by_rule=True,
    heavy=True,
)
def base(spec: JSON, output: Path) -> None:
    """Make a backbone's base checkpoint and tokenizer."""
    from cisterna import models

    models.make_base(spec, output)


@command(
    path("--corpus", required=True, help="sequences or text; the ending says in which form"),
    option("--modality", choices=["dna", "rna", "protein", "text"], required=True),
    mapping("--options", default={}, help="the corpus's other keys of the config"),
    path("--base", required=True, help="base checkpoint, for its tokenizer"),
    OUTPUT,
    by_rule=True,
    heavy=True,
)
def tokenize(corpus: Path, modality: str, options: JSON, base: Path, output: Path) -> None:
    """Tokenize a corpus into a memory-mapped stream."""
    from cisterna.data.tokenized import tokenize_corpus

    print(json.dumps(tokenize_corpus(corpus, modality, base, output, options), indent=1))


@command(
    mapping("--spec", required=True, help="what makes the encoder"),
    mapping("--corpora", default={}, help="name -> file and modality"),
    WORK,
    OUTPUT,
    by_rule=True,
    heavy=True,
)
def encoder(spec: JSON, corpora: JSON, work: Path, output: Path) -> None:
    """Make an encoder, or publish which pretrained one it is."""
    if "pretrained" in spec:
        from cisterna.sequences import encoders

        encoders.refer(spec, output)
        return
    from cisterna.training import encoder

    encoder.train(spec, corpora, work, output)


@command(
    path("--encoder", required=True, help="checkpoint folder made by `encoder`"),
    DATA,
    mapping("--reading", required=True, help="how the encoder is read"),
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


@command(
    path("--tokens", nargs="+", required=True, help="folders made by `tokenize`"),
    *STAGE,
    by_rule=True,
    heavy=True,
)
def cpt(tokens: list[Path], **stage: Any) -> None:
    """Continue pre-training on corpora."""
    from cisterna.training import cpt
    from cisterna.training.arguments import StageArguments

    cpt.train(StageArguments(kind="cpt", **stage), tokens)


@command(*SEQUENCES, *STAGE, by_rule=True, heavy=True)
def sft(
    data: Path, sequences: str, bank: Path | None, encoder: Path | None, reading: JSON | None, **stage: Any
) -> None:
    """Fine-tune on a task's reasoning traces and answers."""
    from cisterna.training import sft
    from cisterna.training.arguments import StageArguments

    sft.train(StageArguments(kind="sft", **stage), data, _source(data, sequences, bank, encoder, reading))


@command(*SEQUENCES, *STAGE, by_rule=True, heavy=True)
def rl(data: Path, sequences: str, bank: Path | None, encoder: Path | None, reading: JSON | None, **stage: Any) -> None:
    """Train by GRPO on a task's verifiable rewards."""
    from cisterna.training import rl
    from cisterna.training.arguments import StageArguments

    rl.train(StageArguments(kind="rl", **stage), data, _source(data, sequences, bank, encoder, reading))


def _source(data: Path, sequences: str, bank: Path | None, encoder: Path | None, reading: JSON | None) -> Any:
    from cisterna.artifacts import files
    from cisterna.sequences.source import open_source
    from cisterna.training.run import one_gpu

    one_gpu()
    modality = files.read_json(data / "card.json")["modality"]
    return open_source(sequences, modality, bank, encoder, reading)


@command(
    path("--checkpoint", required=True),
    path("--tokens", nargs="+", required=True),
    option("--block-size", type=int, default=256),
    OUTPUT,
    by_rule=True,
    heavy=True,
)
def perplexity(checkpoint: Path, tokens: list[Path], block_size: int, output: Path) -> None:
    """Measure a checkpoint's perplexity on held-out corpora."""
    from cisterna.evaluation import perplexity

    perplexity.perplexity(checkpoint, tokens, output, block_size)


@command(
    path("--results", default=Path("results")),
    CONFIG,
    OUTPUT,
    by_rule=True,
)
def gather(results: Path, config: list[str] | None, output: Path) -> None:
    """Collect a study's metrics into one table."""
    from cisterna.report import gather

    gather.gather(read_study(config), results, output)


@command(
    path("--metrics", required=True, help="folder made by `gather`"),
    CONFIG,
    OUTPUT,
    by_rule=True,
)
def figures(metrics: Path, config: list[str] | None, output: Path) -> None:
    """Draw a study's figures and results table."""
    from cisterna.report import figures

    figures.figures(read_study(config), metrics, output)


@command(
    path("--results", default=Path("results")),
    CONFIG,
    OUTPUT,
    by_rule=True,
)
def findings(results: Path, config: list[str] | None, output: Path) -> None:
    """Test the paper's claims on a study's answers."""
    from cisterna.report import findings

    findings.findings(read_study(config), results, output)


@command(
    path("socket"),
    by_rule=True,
)
def fork_server(socket: Path) -> None:
    """Import the heavy libraries once for all jobs of a local run (the Snakefile starts this)."""
    from cisterna.cli.dispatch import main
    from cisterna.runtime import fork_server

    fork_server.serve(socket, main)
