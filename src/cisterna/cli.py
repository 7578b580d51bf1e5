"""The `cisterna` command: one subcommand a rule, so that every job of the workflow can be run by hand.

Subcommands import what they need when they run; `cisterna --help` imports no library. Exit codes: 0 done, 2 a mistake
of the user's (one short message, no traceback), 143 stopped by SIGTERM with its state saved, anything else a bug.
"""

import argparse
import atexit
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from cisterna import __version__
from cisterna.artifacts.shutdown import EXIT_CODE, Stopped
from cisterna.artifacts.work_folder import SAVE_MINUTES
from cisterna.errors import UserError, explain

DEFAULT = Path("config/config.yaml")
HEAVY = frozenset(
    {"tokenize", "base", "encoder", "features", "cpt", "sft", "rl", "evaluate", "perplexity", "baselines", "predict"}
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Without `arguments` it is the process's own and ends the process."""
    if arguments is None:
        _leave(_run(sys.argv[1:]))
    return _run(list(arguments))


def _run(given: list[str]) -> int:
    options = _parser().parse_args(given)
    socket = os.environ.get("CISTERNA_WARM")
    if socket and options.command in HEAVY and options.warm:
        from cisterna.runtime import fork_server

        code = fork_server.run(socket, given)
        if code is not None:
            return code
    if options.command not in HEAVY:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `cisterna plan | head` ends in silence
    try:
        options.run(options)
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"stopped: {stopped}", file=sys.stderr)
        return EXIT_CODE
    except Exception as error:
        message = explain(error, options.command, getattr(options, "output", None) or Path.cwd())
        if message is None:
            raise
        with suppress(OSError):  # the log may be on the disk that is full
            print(f"error: {message}", file=sys.stderr, flush=True)
        return 2
    return 0


def _leave(code: int) -> NoReturn:
    """End the process without the destructors of native libraries.

    Arrow's thread pool now and then aborts or hangs a command there that has done its work
    (https://github.com/apache/arrow/issues/34314, https://github.com/apache/arrow/issues/50482).
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def _takes_config(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--config",
        type=Path,
        action="append",
        metavar="FILE",
        help=f"the study (default: {DEFAULT}); given again, a file that changes what it names",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cisterna", description=__doc__.split("\n")[0])
    parser.add_argument("--version", action="version", version=f"cisterna {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary)
        added.set_defaults(run=run, warm=True)
        return added

    plan = command("plan", _plan, "print what a study would train: models, jobs, shared stages, examples, tokens")
    _takes_config(plan)

    data = command("data", _data, "split a task's examples into train, validation, id, ood and audit them for leakage")
    data.add_argument("--task", required=True)
    data.add_argument("--spec", type=_mapping, required=True, help="the task's block of the config, as JSON")
    data.add_argument("--seed", type=int, default=0)
    data.add_argument("--output", type=Path, required=True)

    audit = command("audit", _audit, "check the splits of a prepared task for leakage")
    audit.add_argument("data", type=Path, help="a folder results/data/TASK")
    audit.add_argument("--output", type=Path, help="JSON file for what was checked")

    baselines = command("baselines", _baselines, "majority, k-NN and logistic regression on a task's splits")
    baselines.add_argument("--data", type=Path, required=True)
    baselines.add_argument("--options", type=_mapping, required=True, help="the config's evaluation block, as JSON")
    baselines.add_argument("--output", type=Path, required=True)

    base = command("base", _base, "make a backbone's base checkpoint and tokenizer")
    base.add_argument("--spec", type=_mapping, required=True, help="the backbone's block of the config, as JSON")
    base.add_argument("--output", type=Path, required=True)

    tokenize = command("tokenize", _tokenize, "tokenize a corpus into a memory-mapped stream")
    tokenize.add_argument("--corpus", type=Path, required=True, help="sequences or text; the ending says in which form")
    tokenize.add_argument("--modality", choices=["dna", "rna", "protein", "text"], required=True)
    tokenize.add_argument("--options", type=_mapping, default={}, help="the corpus's other keys of the config, as JSON")
    tokenize.add_argument("--base", type=Path, required=True, help="base checkpoint that holds the tokenizer")
    tokenize.add_argument("--output", type=Path, required=True)

    encoder = command("encoder", _encoder, "make an encoder, or publish which pretrained one it is")
    encoder.add_argument("--spec", type=_mapping, required=True, help="what makes the encoder, as JSON")
    encoder.add_argument("--corpora", type=_mapping, default={}, help="name -> file and modality, as JSON")
    encoder.add_argument("--work", type=Path, required=True, help="folder for resumable trainer state")
    encoder.add_argument("--output", type=Path, required=True, help="checkpoint folder to publish")

    features = command("features", _features, "compute the feature bank of a task's sequences")
    features.add_argument("--encoder", type=Path, required=True, help="checkpoint folder made by `encoder`")
    features.add_argument("--data", type=Path, required=True, help="folder made by `data`")
    features.add_argument("--reading", type=_mapping, required=True, help="how the encoder is read, as JSON")
    features.add_argument("--work", type=Path, required=True, help="folder for what is done, until it is published")
    features.add_argument(
        "--save-minutes", type=float, default=SAVE_MINUTES, help="how often to save (default: %(default)s)"
    )
    features.add_argument("--output", type=Path, required=True)

    for name, run, summary in (
        ("cpt", _cpt, "continue pre-training on corpora"),
        ("sft", _sft, "fine-tune on a task's reasoning traces and answers"),
        ("rl", _rl, "train by GRPO on a task's verifiable rewards"),
    ):
        stage = command(name, run, summary)
        stage.add_argument("--parent", type=Path, required=True, help="checkpoint to start from")
        if name == "cpt":
            stage.add_argument("--tokens", type=Path, nargs="+", required=True, help="folders made by `tokenize`")
        else:
            stage.add_argument("--data", type=Path, required=True, help="folder made by `data`")
            stage.add_argument("--sequences", choices=["tokens", "features", "both"], default="tokens")
            stage.add_argument("--bank", type=Path, help="folder made by `features`")
            stage.add_argument("--encoder", type=Path, help="in place of a bank: the encoder, to run in every step")
            stage.add_argument("--reading", type=_mapping, help="beside --encoder: how it is read, as JSON")
        stage.add_argument("--recipe", type=_mapping, required=True, help="the recipe's block of the config, as JSON")
        stage.add_argument("--seed", type=int, default=0)
        stage.add_argument("--epochs", type=float, required=True)
        stage.add_argument("--previous", type=Path, help="the rung before, in a ladder")
        stage.add_argument("--work", type=Path, required=True, help="folder for resumable trainer state")
        stage.add_argument("--output", type=Path, required=True, help="checkpoint folder to publish")

    evaluate = command("evaluate", _evaluate, "evaluate a checkpoint on a task's id and ood splits")
    evaluate.add_argument("--checkpoint", type=Path, required=True)
    evaluate.add_argument("--data", type=Path, required=True)
    evaluate.add_argument("--bank", type=Path, help="feature bank of the task (default: run the encoder)")
    evaluate.add_argument("--options", type=_mapping, required=True, help="the config's evaluation block, as JSON")
    evaluate.add_argument(
        "--work", type=Path, help="folder for what is answered, until it is published (default: none)"
    )
    evaluate.add_argument("--output", type=Path, required=True)

    predict = command("predict", _predict, "answer new sequences with a checkpoint of SFT or RL")
    predict.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    predict.add_argument(
        "--input", type=Path, required=True, help="csv, tsv, Parquet or JSON lines with the sequences; cells also .h5ad"
    )
    predict.add_argument("--output", type=Path, required=True, help="Parquet file, a row a sequence")
    predict.add_argument("--options", type=_mapping, default={}, help="the config's evaluation block, as JSON")

    perplexity = command("perplexity", _perplexity, "measure a checkpoint's perplexity on held-out corpora")
    perplexity.add_argument("--checkpoint", type=Path, required=True)
    perplexity.add_argument("--tokens", type=Path, nargs="+", required=True)
    perplexity.add_argument("--block-size", type=int, default=256)
    perplexity.add_argument("--output", type=Path, required=True)

    gather = command("gather", _gather, "collect a study's metrics into one table")
    figures = command("figures", _figures, "draw a study's figures and results table")
    gather.add_argument("--results", type=Path, default=Path("results"))
    gather.add_argument(
        "--partial", action="store_true", help="gather what is there, and say why the rest is not, in cells.parquet"
    )
    figures.add_argument("--metrics", type=Path, required=True, help="folder made by `gather`")
    findings = command("findings", _findings, "test the paper's claims on a study's answers")
    findings.add_argument("--results", type=Path, default=Path("results"))
    for stage in (gather, figures, findings):
        stage.add_argument("--study", type=_mapping, required=True, help="the whole config, as JSON")
        stage.add_argument("--output", type=Path, required=True)

    advise = command("advise", _advise, "print what a study's answers say about a choice, and how surely")
    _takes_config(advise)
    advise.add_argument("--budget-epochs", type=int, metavar="N", help="epochs to divide between SFT and RL")
    advise.add_argument("--results", type=Path, default=Path("results"), help="(default: %(default)s)")
    advise.add_argument("--output", type=Path, help="JSON file for the same (default: none)")

    verify = command(
        "verify", _verify, "check every manifest, hash and parent below a folder; exit code 2 if one is broken"
    )
    verify.add_argument("path", type=Path, nargs="?", default=Path("results"), help="(default: %(default)s)")

    clean = command("clean", _clean, "list what no config refers to and what killed processes left in results/")
    clean.add_argument(
        "--config",
        type=Path,
        nargs="+",
        action="extend",
        metavar="FILE",
        help="every study whose results stay (default: config/config.yaml)",
    )
    clean.add_argument(
        "--finished", action="store_true", help="also the state of finished ladders, to which no rung will be added"
    )
    clean.add_argument("--yes", action="store_true", help="remove what is listed")

    status = command("status", _status, "print what a running study does: stages under way, jobs done and failed")
    status.add_argument("path", type=Path, nargs="?", default=Path("results"), help="only jobs below this folder")
    _takes_config(status)
    status.add_argument("--watch", action="store_true", help="show it, kept up to date, until Ctrl-C")

    warm = command("warm", _warm, "serve warm starts to the jobs of a local run (the Snakefile starts this)")
    warm.add_argument("socket", type=Path)
    return parser


def _mapping(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("expected a JSON object, {...}")
    return value


def _plan(options: argparse.Namespace) -> None:
    from cisterna.ops import plan

    plan.main(*options.config or [DEFAULT])


def _status(options: argparse.Namespace) -> None:
    from cisterna.ops import status

    status.main(options.config or [DEFAULT], options.path, options.watch)


def _data(options: argparse.Namespace) -> None:
    from cisterna.data import splits

    splits.prepare(options.task, options.spec, options.seed, options.output)


def _audit(options: argparse.Namespace) -> None:
    from cisterna.artifacts import files
    from cisterna.data import splits

    passed = splits.audit_folder(options.data)
    print(json.dumps(passed, indent=1))
    if options.output:
        files.write_json(options.output, passed)


def _baselines(options: argparse.Namespace) -> None:
    from cisterna.artifacts import files
    from cisterna.evaluation import baselines
    from cisterna.scoring import answers
    from cisterna.study.config import evaluation_options

    chosen = evaluation_options(options.options)
    card = files.read_json(options.data / "card.json")
    baselines.run(
        options.data,
        options.output,
        space=answers.load_space(card, options.data),
        modality=card["modality"],
        seed=int(chosen.get("seed", 0)),
        bootstrap=int(chosen["bootstrap"]),
    )


def _base(options: argparse.Namespace) -> None:
    from cisterna import models

    models.make_base(options.spec, options.output)


def _tokenize(options: argparse.Namespace) -> None:
    from cisterna.data import corpus

    card = corpus.tokenize(options.corpus, options.modality, options.base, options.output, options.options)
    print(json.dumps(card, indent=1))


def _encoder(options: argparse.Namespace) -> None:
    if "pretrained" in options.spec:
        from cisterna.sequences import encoders

        encoders.refer(options.spec, options.output)
        return
    from cisterna.training import encoder

    encoder.train(options.spec, options.corpora, options.work, options.output)


def _features(options: argparse.Namespace) -> None:
    from cisterna.sequences import feature_bank

    feature_bank.build_for_task(
        options.encoder, options.data, options.reading, options.work, options.output, options.save_minutes
    )


def _stage(options: argparse.Namespace) -> Any:
    from cisterna.training.arguments import StageArguments

    return StageArguments(
        kind=options.command,
        parent=options.parent,
        output=options.output,
        work=options.work,
        recipe=options.recipe,
        seed=options.seed,
        epochs=options.epochs,
        previous=options.previous,
    )


def _cpt(options: argparse.Namespace) -> None:
    from cisterna.training import cpt

    cpt.train(_stage(options), options.tokens)


def _inputs(options: argparse.Namespace) -> Any:
    from cisterna.artifacts import files
    from cisterna.sequences.source import open_source
    from cisterna.training.run import one_gpu

    one_gpu()
    modality = files.read_json(options.data / "card.json")["modality"]
    return open_source(options.sequences, modality, options.bank, options.encoder, options.reading)


def _sft(options: argparse.Namespace) -> None:
    from cisterna.training import sft

    sft.train(_stage(options), options.data, _inputs(options))


def _rl(options: argparse.Namespace) -> None:
    from cisterna.training import rl

    rl.train(_stage(options), options.data, _inputs(options))


def _evaluate(options: argparse.Namespace) -> None:
    from cisterna.evaluation import evaluate
    from cisterna.study.config import evaluation_options

    chosen = evaluation_options(options.options)
    evaluate.evaluate(options.checkpoint, options.data, options.output, chosen, options.bank, options.work)


def _predict(options: argparse.Namespace) -> None:
    from cisterna.evaluation import predict
    from cisterna.study.config import evaluation_options

    predict.predict(options.checkpoint, options.input, options.output, evaluation_options(options.options))


def _perplexity(options: argparse.Namespace) -> None:
    from cisterna.evaluation import perplexity

    perplexity.perplexity(options.checkpoint, options.tokens, options.output, options.block_size)


def _gather(options: argparse.Namespace) -> None:
    from cisterna import study
    from cisterna.report import gather

    gather.gather(study.load(options.study), options.results, options.output, options.partial)


def _figures(options: argparse.Namespace) -> None:
    from cisterna import study
    from cisterna.report import figures

    figures.figures(study.load(options.study), options.metrics, options.output)


def _findings(options: argparse.Namespace) -> None:
    from cisterna import study
    from cisterna.report import findings

    findings.findings(study.load(options.study), options.results, options.output)


def _advise(options: argparse.Namespace) -> None:
    from cisterna.report import advice

    advice.main(options.config or [DEFAULT], options.budget_epochs, options.results, options.output)


def _verify(options: argparse.Namespace) -> None:
    from cisterna.ops import verify

    print(verify.verify(options.path))


def _clean(options: argparse.Namespace) -> None:
    from cisterna.ops import clean

    configs = options.config or [DEFAULT]
    clean.clean(configs, yes=options.yes, finished=options.finished)


def _warm(options: argparse.Namespace) -> None:
    from cisterna.runtime import fork_server

    fork_server.serve(options.socket, main)


if __name__ == "__main__":
    sys.exit(main())
