"""The commands of `cisterna` that people run."""

import json
from pathlib import Path
from typing import Any

from cisterna.cli.table import CONFIG, command, config_files, mapping, option, path, read_study
from cisterna.errors import UserError

Config = list[str] | None


@command(CONFIG)
def plan(config: Config) -> None:
    """Print what a study would train: models, jobs, shared stages, examples, tokens."""
    from cisterna.ops import plan

    plan.main(*config_files(config))


@command(path("path", help="e.g. results/models/.../e2/checkpoint"), CONFIG)
def train(path: Path, config: Config) -> None:
    """Make one checkpoint or feature bank of a study, as its rule does, from what the study says."""
    from cisterna.runtime import commands

    commands.run(read_study(config), path, *commands.TRAINING)


@command(
    path(
        "path",
        nargs="?",
        help="e.g. results/models/.../e2/eval; a rule gives the options below in its place",
    ),
    CONFIG,
    path("--checkpoint"),
    path("--data", help="folder made by `data`"),
    path("--bank", help="feature bank of the task (default: run the encoder)"),
    mapping("--options", help="the config's evaluation block"),
    path("--work", help="folder for answers until all are published (default: none)"),
    path("--output"),
    heavy=True,
)
def evaluate(
    path: Path | None,
    config: Config,
    checkpoint: Path | None,
    data: Path | None,
    bank: Path | None,
    options: dict[str, Any] | None,
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
    path("--output", help="JSON file for what was checked"),
)
def audit(data: Path, output: Path | None) -> None:
    """Check the splits of a prepared task for leakage."""
    from cisterna.artifacts import files
    from cisterna.data.audit import audit_folder

    passed = audit_folder(data)
    print(json.dumps(passed, indent=1))
    if output:
        files.write_json(output, passed)


@command(
    path("checkpoint", metavar="CHECKPOINT"),
    path("--input", required=True, help="csv, tsv, Parquet or JSON lines with the sequences; cells also .h5ad"),
    path("--output", required=True, help="Parquet file, a row a sequence"),
    mapping("--options", default={}, help="keys of the config's evaluation block that differ from their defaults"),
    heavy=True,
)
def predict(checkpoint: Path, input: Path, output: Path, options: dict[str, Any]) -> None:
    """Answer new sequences with a checkpoint of SFT or RL."""
    from cisterna.evaluation import predict
    from cisterna.study.config import evaluation_options

    predict.predict(checkpoint, input, output, evaluation_options(options))


@command(
    option("--partial", action="store_true", help="only of the finished jobs, in its partial/"),
    CONFIG,
)
def report(partial: bool, config: Config) -> None:
    """Write the tables and figures of a study into results/studies/NAME."""
    from cisterna.report import figures, findings, gather

    study = read_study(config)
    results = Path("results")
    folder = results / "studies" / study.name
    if partial:
        folder /= "partial"
    gather.gather(study, results, folder, partial)
    figures.figures(study, folder, folder / "figures")
    if not partial:
        findings.findings(study, results, folder)
    print(f"The report is at {folder / 'figures' / 'table.html'}")


@command(
    CONFIG,
    option("--budget-epochs", type=int, metavar="N", help="epochs to divide between SFT and RL"),
    path("--results", default=Path("results"), help="(default: %(default)s)"),
    path("--output", help="JSON file for the same (default: none)"),
)
def advise(config: Config, budget_epochs: int | None, results: Path, output: Path | None) -> None:
    """Print what a study's answers say about a choice, and how surely."""
    from cisterna.report import advice

    advice.main(config_files(config), budget_epochs, results, output)


@command(
    path("path", nargs="?", default=Path("results"), help="only jobs below this folder"),
    CONFIG,
    option("--watch", action="store_true", help="keep it up to date, until Ctrl-C"),
)
def status(path: Path, config: Config, watch: bool) -> None:
    """Print what a running study does: stages under way, jobs done and failed."""
    from cisterna.ops import status

    status.main(config_files(config), path, watch)


@command(
    path("path", nargs="?", default=Path("results"), help="(default: %(default)s)"),
)
def verify(path: Path) -> None:
    """Check every manifest, hash and parent below a folder; exit code 2 if one is broken."""
    from cisterna.ops import verify

    print(verify.verify(path))


@command(
    path(
        "--config",
        nargs="+",
        action="extend",
        metavar="FILE",
        help="every study whose results stay, one a file (default: config/config.yaml)",
    ),
    option("--finished", action="store_true", help="also the state of ladders that will get no further rung"),
    option("--yes", action="store_true", help="remove what is listed"),
)
def clean(config: list[Path] | None, finished: bool, yes: bool) -> None:
    """List what no config refers to and what killed processes left in results/."""
    from cisterna.ops import clean

    clean.clean(config or config_files(None), yes=yes, finished=finished)
