"""What a person sees of a run: real Snakemake, with jobs that only wait, fail or are killed."""

import os
import re
import signal
from pathlib import Path

import pytest
from terminals import Terminal, screen

from clones import environment, make
from forks import Fork

pytestmark = pytest.mark.snakemake
# Four SFT jobs, and their evaluations. A file `fail`, `kill` or `hang` in the folder says how number 1 ends.
SNAKEFILE = """
rule all:
    default_target: True
    input: expand("results/models/m{number}/eval", number=range(4))

rule sft:
    output: directory("results/models/m{number}/checkpoint")
    log: "results/logs/models/m{number}.log"
    shell: "exec bash job.sh {wildcards.number} {output} > {log} 2>&1"

rule evaluate:
    input: rules.sft.output
    output: directory("results/models/m{number}/eval")
    log: "results/logs/models/m{number}/eval.log"
    shell: "mkdir {output} > {log} 2>&1"
"""
JOB = r"""
if [ $1 = 1 ]; then
    if [ -e fail ]; then printf 'step 1\nerror: the table has no column \033[31mseq\n'; exit 2; fi
    if [ -e kill ]; then kill -KILL $$; fi
    if [ -e hang ]; then exec sleep 600; fi
fi
mkdir $2
"""
RUN = ("--cores", "1", "--keep-going", "--logger=cisterna")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "job.sh").write_text(JOB)
    return tmp_path


def run(folder: Path, *arguments: str, code: int = 0) -> str:
    """What Snakemake writes into a pipe or file."""
    log = folder / "output"
    ended = Fork("snakemake", arguments, log, folder, environment({"FORCE_COLOR": "1"})).wait()
    output = log.read_text()
    assert ended == code, output
    return output


def test_in_a_pipe_a_plain_line_is_written_when_a_stage_begins_or_ends(folder):
    lines = run(folder, *RUN).splitlines()
    assert not CONTROL.search("".join(lines))
    timed = [line[10:] for line in lines if re.match(r"\d\d:\d\d:\d\d  ", line)]
    assert timed[0] == "This run: 8 jobs to do"
    assert any(line.startswith("SFT: 0 of 4 done, 1 running, 3 waiting; in all 0 of 8") for line in timed)
    assert any(line.startswith("SFT: 4 of 4 done") for line in timed)
    assert timed[-1] == "evaluation: 4 of 4 done; in all 8 of 8"
    assert lines[-1].startswith("This run is done: 8 jobs in ")


def test_failure_is_the_last_that_is_written_with_its_reason_and_what_to_do(folder):
    (folder / "fail").touch()
    output = run(folder, *RUN, code=1)
    assert not CONTROL.search(output.replace("\n", ""))
    reason = "the table has no column [31mseq"
    assert re.search(
        rf"^\d\d:\d\d:\d\d  failed: sft results/models/m1/checkpoint\n +{re.escape(reason)}$", output, re.M
    )
    end = output[output.index("This run: 6 of 8 jobs are done, 1 failed, 1 was not started") :]
    for text in (
        "failed: sft results/models/m1/checkpoint",
        reason,
        "results/logs/models/m1.log",
        "same command again",
    ):
        assert text in end
    assert "rule sft:" not in output
    (log,) = (folder / ".snakemake" / "log").iterdir()
    assert "rule sft:" in log.read_text()

    (folder / "fail").unlink()
    assert "This run is done: 2 jobs in" in run(folder, *RUN)


def test_killed_job_is_said_to_be_killed(folder):
    (folder / "kill").touch()
    output = run(folder, *RUN, code=1)
    assert "why:  killed, most often because the memory" in output


def test_job_that_succeeds_when_it_is_tried_again_is_no_failure(folder):
    (folder / "fail").touch()
    (folder / "job.sh").write_text(JOB.replace("exit 2", "rm fail; exit 2"))
    output = run(folder, *RUN, "--retries", "1")
    assert re.search(r"^\d\d:\d\d:\d\d  tried again: sft results/models/m1/checkpoint$", output, re.M)
    assert "This run is done: 8 jobs in" in output


def test_job_that_slurm_stops_is_said_to_be_stopped_and_is_no_failure(folder):
    (folder / "fail").touch()
    (folder / "job.sh").write_text(
        JOB.replace("error: the table has no column", "stopped: at step 1").replace("exit 2", "exit 143")
    )
    output = run(folder, *RUN, code=1)
    assert re.search(r"^\d\d:\d\d:\d\d  stopped by a signal: sft results/models/m1/checkpoint$", output, re.M)
    assert "1 was stopped, 1 was not started" in output
    assert "To continue, type the same command again" in output
    assert "failed:" not in output


def test_terminal_shows_a_line_a_stage_and_ctrl_c_says_how_to_continue(folder):
    (folder / "hang").touch()
    terminal = Terminal(folder, "snakemake", *RUN, columns=120)
    terminal.read(until="sft  results/models/m1/checkpoint")
    page = "\n".join(screen(terminal.text))
    assert re.search(r"^SFT +\S+ +\d/4 +1\b", page, re.MULTILINE)
    assert re.search(r"^evaluation +\S+ +\d/4\b", page, re.MULTILINE)
    assert "time left: " in page

    os.killpg(terminal.process.pid, signal.SIGINT)  # as the terminal does for Ctrl-C
    lines = screen(terminal.read())
    assert terminal.process.wait() == 1
    assert "\x1b[?25h" in terminal.text  # the cursor is back
    page = "\n".join(lines)
    assert len(re.findall("^stage ", page, re.MULTILINE)) == 1  # drawn over, not again and again
    assert "1 was stopped" in page
    assert "To continue, type the same command again" in page
    assert "failed:" not in page


def test_dry_run_is_as_without_the_view(folder):
    plain, viewed = (run(folder, "--dry-run", "--cores", "1", *words) for words in ((), ("--logger=cisterna",)))
    moving = r"(Date|Workflow ID|Command): .*|\[.*\]|\d[\d.:]+"
    assert re.sub(moving, "", viewed) == re.sub(moving, "", plain)


def test_error_before_the_first_job_is_shown(folder):
    assert "MissingRuleException" in run(folder, *RUN, "results/no/such/file", code=1)


@pytest.mark.slow
def test_failure_of_a_study_names_the_study_and_the_command_for_the_job_alone(tmp_path):
    clone = make(tmp_path)
    table = tmp_path / "tables" / "our hairpins.csv"
    table.write_text(table.read_text().replace("seq", "sequence", 1))
    output = clone.snakemake("--logger=cisterna", "results/data/hairpin", code=1)
    assert "Study tiny: 0 of 1 jobs are done, 1 failed" in output
    assert re.search(r"why:  .*our hairpins\.csv.*seq", output)
    assert "snakemake --cores 1 results/data/hairpin\n" in output
    assert "Some jobs failed" not in output  # the advice of the Snakefile, which the view replaces
    (tmp_path / "config" / "config.yaml").rename(tmp_path / "config" / "our study.yaml")
    output = clone.snakemake(
        "--logger=cisterna", "results/data/hairpin", "--configfile", "config/our study.yaml", code=1
    )
    assert "snakemake --cores 1 results/data/hairpin --configfile 'config/our study.yaml'\n" in output
