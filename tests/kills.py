"""Kill a stage at a moment, before a change of the file system, or by SIGTERM, and compare what it publishes.

A stage is the command that a rule starts, in a fork (`forks`). For `test_kills.py` and `benchmarks/faults.py`.
"""

import itertools
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cisterna.artifacts import progress, shutdown
from forks import Fork
from runs import CPT, RL, SFT, Run, solver
from tiny import READING, ROOT, SIZES, backbone, encoder
from waiting import PATIENCE, wait_until

RESUMED = re.compile("resuming from step|done already")  # printed by training; by features and evaluate
CHANGES = frozenset({"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod"})


@dataclass(frozen=True)
class Stage:
    """A command of Cisterna in a folder of its own.

    `command` gives its arguments for a folder. `output`, `work` and `saves` (a pattern of the files that it saves in
    the work folder) are relative to the folder, or to `work`.
    """

    command: Callable[[Path], list[str]]
    output: str
    work: str
    saves: str

    def start(self, folder: Path, crash: int | None = None) -> Fork:
        """Start it in `folder`, with its output in `folder`/log. With `crash` it kills itself before that change."""
        hook = _Crash(folder, folder / self.output, crash) if crash else None
        return Fork("cisterna", self.command(folder), folder / "log", hook=hook)

    def run(self, folder: Path, crash: int | None = None) -> int:
        """Run it to its end; the exit code, negative for a signal."""
        return self.start(folder, crash).wait(PATIENCE)

    def contents(self, folder: Path) -> dict[str, Any] | None:
        """What is published: the bytes of each file, and of the manifest what two identical runs have in common."""
        output = folder / self.output
        return {path.name: _content(path) for path in sorted(output.iterdir())} if output.is_dir() else None

    def leftovers(self, folder: Path) -> list[str]:
        """Names of temporary folders that it left next to its output."""
        output = folder / self.output
        return [path.name for path in output.parent.iterdir() if path.name.startswith(f".{output.name}.")]


def log(folder: Path) -> str:
    """What the last process printed."""
    return (folder / "log").read_text()


def _content(path: Path) -> Any:
    if path.name != "manifest.json":
        return path.read_bytes()
    manifest = json.loads(path.read_text())
    for key in ("measured", "seal"):  # the seal is a hash over what was measured
        del manifest[key]
    del manifest["provenance"]["git_commit"]
    return manifest


class _Crash:
    """An audit hook that kills the process before a change of the file system below `folder`.

    Changes are counted from the first one of the publishing on, which makes the new folder next to `output`. Python
    calls the hook before each change (https://docs.python.org/3/library/audit_events.html). Opening a file for writing
    is a change, too.
    """

    def __init__(self, folder: Path, output: Path, number: int) -> None:
        self.folder = str(folder)
        self.first = str(output.with_name(f".{output.name}."))
        self.left = number
        self.publishing = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = any(letter in mode for letter in "wax+") if mode else flags & (os.O_WRONLY | os.O_RDWR)
            if not writes:
                return
        elif event in CHANGES:
            path = arguments[0]
        else:
            return
        path = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        # shutil.rmtree names what it removes relative to an open folder, which is ours where we are publishing
        inside = path.startswith(self.folder) or (event in ("os.remove", "os.rmdir") and not os.path.isabs(path))
        self.publishing = self.publishing or path.startswith(self.first)
        if self.publishing and inside:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def prepare(folder: Path) -> dict[str, Stage]:
    """Make everything that the stages to kill read, in `folder`."""
    import contextlib

    from cisterna import models
    from cisterna.data import splits
    from cisterna.data.tokenized import tokenize_corpus

    base, splice = folder / "base", folder / "splice-donor"
    models.make_base(backbone(), base)
    with contextlib.chdir(ROOT):  # the table that ships is named relative to the repository
        splits.prepare("splice-donor", SIZES, 0, splice)
        tokenize_corpus(Path("resources/corpora/dna.fasta.gz"), "dna", base, folder / "dna")
    return stages(base, splice, folder / "dna", solver(base, splice, folder).here().output, folder)


def stages(base: Path, splice: Path, dna: Path, solved: Path, folder: Path) -> dict[str, Stage]:
    """The stages to kill, each a second or two long and saving often. `folder` is for an encoder that is slow enough.

    Completions of the checkpoint `solved` differ in reward.
    """
    esm = encoder(folder / "esm", num_hidden_layers=16)
    often = {"save_minutes": 0.003}  # 0.2 s, a few steps

    def training(kind: str, parent: Path, read: Path, recipe: dict[str, Any], epochs: float) -> Stage:
        def command(place: Path) -> list[str]:
            return Run(kind, parent, read, place, recipe | often, epochs).arguments

        return Stage(command, f"e{epochs:g}/checkpoint", f"e{epochs:g}/.work", "checkpoint-*/complete.json")

    def features(place: Path) -> list[str]:
        reading = json.dumps(READING | {"batch_tokens": 9})  # a sequence a batch
        words = ["features", "--encoder", esm, "--data", splice, "--reading", reading, "--save-minutes", 0.001]
        return [str(word) for word in (*words, "--work", place / ".work", "--output", place / "bank")]

    def evaluate(place: Path) -> list[str]:
        options = json.dumps({"max_new_tokens": 40, "batch_size": 8, "bootstrap": 100, "samples": 2})
        words = ["evaluate", "--checkpoint", solved, "--data", splice, "--options", options]
        return [str(word) for word in (*words, "--work", place / ".work", "--output", place / "eval")]

    return {
        "cpt": training("cpt", base, dna, CPT | {"lora": {"r": 4, "lora_dropout": 0.1}}, 0.05),
        "sft": training("sft", base, splice, SFT, 2),
        "rl": training("rl", solved, splice, RL | {"num_iterations": 2, "examples": 8}, 2),
        "features": Stage(features, "bank", ".work", "features-*"),
        "evaluate": Stage(evaluate, "eval", ".work", "*/*.json"),
    }


def undisturbed(stage: Stage, folder: Path) -> tuple[dict[str, Any], float]:
    """Run a stage undisturbed: what it publishes, and the seconds from its start to its end."""
    started = time.monotonic()
    assert stage.run(folder) == 0, log(folder)
    seconds = time.monotonic() - started
    contents = stage.contents(folder)
    assert contents
    return contents, seconds


def killed(stage: Stage, folder: Path, moment: float) -> float:
    """Start a stage and kill it `moment` seconds later. If it has ended by then, start again and kill it earlier.

    Returns the seconds of work that were lost: those since it last saved or, if it has not, since its work began.
    """
    while True:
        process = stage.start(folder)
        process.join(moment)
        process.send_signal(signal.SIGKILL)
        ended = time.time()
        code = process.wait(PATIENCE)
        if code == -signal.SIGKILL:
            return _lost(stage, folder, ended)
        assert code == 0, log(folder)
        shutil.rmtree(folder)
        moment *= 0.8


def terminated(stage: Stage, folder: Path, moment: float = 0.0) -> tuple[float, float]:
    """Start a stage and send it SIGTERM `moment` seconds after its work began; it has to end with code 143.

    Returns the seconds that it took to end, and the seconds of work that were lost.
    """
    process = stage.start(folder)
    wait_until((folder / stage.work / progress.NAME).is_file, "the first progress", process, pause=0.002)
    process.join(moment)
    started = time.time()
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == shutdown.EXIT_CODE, log(folder)
    return time.time() - started, _lost(stage, folder, started)


def crashes(stage: Stage, folder: Path) -> Iterator[None]:
    """For each change of the file system in the publishing: fill `folder` with what a kill before it leaves."""
    ready = folder.with_name(f"{folder.name}-ready")
    assert stage.run(ready, crash=1) == -signal.SIGKILL, log(ready)
    for change in itertools.count(1):
        shutil.copytree(ready, folder)  # at the same depth: manifests hold relative paths
        code = stage.run(folder, crash=change)
        if code == 0:
            break
        assert code == -signal.SIGKILL, log(folder)
        yield
        shutil.rmtree(folder)


def _lost(stage: Stage, folder: Path, ended: float) -> float:
    work = folder / stage.work
    if stage.contents(folder) is not None or not (work / progress.NAME).is_file():
        return 0.0
    saved = [path.stat().st_mtime for path in work.glob(stage.saves)]
    return max(0.0, ended - max(saved, default=json.loads((work / progress.NAME).read_text())["begun"]))
