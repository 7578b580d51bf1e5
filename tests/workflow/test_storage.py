"""Results on S3: a study run through Snakemake's storage plugin with a real S3 server on this machine."""

import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from snakemake_storage_plugin_s3 import StorageObject, StorageProvider, StorageProviderSettings

from cisterna.runtime import snakefile
from clones import CONFIG, REPORT, Clone, Config, Job, edited, make, snakemake
from tiny import ROOT
from waiting import wait_until

SECRET = "Xq7-a-key-that-nobody-may-see"
COPIES = Path(".snakemake") / "storage"
CPT = "models/tiny/cpt-bio"
RL = f"{CPT}/hairpin/s0/sft-brief/e2/rl-grpo/e1"
ANSWERS = f"{CPT}/hairpin/s0/answers.json"  # of e1, e2 and RL
FEATURES = "models/tiny/base/splice-donor/features-tiny-esm/s0/sft-short/e1"


def study(**changes: Any) -> Config:
    """A part of the tiny study: every kind of stage once, a ladder, a group, and a model that reads features."""
    config = edited(recipes__sft__brief__epochs=[1, 2], evaluation__group="lineage", **changes)
    config["lineages"] = [
        {"tasks": ["hairpin"], "cpt": ["bio"], "sft": ["brief"], "rl": [{"recipe": "grpo", "from": [2]}]},
        {"tasks": ["splice-donor"], "sft": ["short"], "sequences": ["features"]},
    ]
    return config


class Stored(Clone):
    """A clone whose results are on the server at `url`, in s3://bucket/lab."""

    def __init__(self, folder: Path, url: str) -> None:
        super().__init__(folder)
        self.keys = {
            "SNAKEMAKE_STORAGE_S3_ENDPOINT_URL": url,
            "SNAKEMAKE_STORAGE_S3_ACCESS_KEY": "us",
            "SNAKEMAKE_STORAGE_S3_SECRET_KEY": SECRET,
        }

    def snakemake(self, *arguments: str, code: int = 0) -> str:
        storage = ("--default-storage-provider", "s3", "--default-storage-prefix", "s3://bucket/lab")
        return self.run(*snakemake(*storage, *arguments), code=code, **self.keys)

    def copies(self) -> set[str]:
        """The files of local copies of results."""
        root = self.folder / COPIES
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


class Server:
    """The S3 server and its bucket."""

    def __init__(self, url: str) -> None:
        self.url = url
        service = boto3.resource(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="us", aws_secret_access_key=SECRET
        )
        self.bucket = service.Bucket("bucket")

    def objects(self) -> dict[str, bytes]:
        """Key (below the prefix) to content."""
        return {item.key.removeprefix("lab/"): item.get()["Body"].read() for item in self.bucket.objects.all()}

    def clone(self, folder: Path) -> Stored:
        """A fresh clone that keeps its results here."""
        make(folder, study())
        return Stored(folder, self.url)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """In a process of its own: vLLM does not start in one that has imported Flask."""
    log = tmp_path_factory.mktemp("moto") / "log"
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", "0"]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        found = wait_until(lambda: re.search(r"http://127\.0\.0\.1:\d+", log.read_text()), "moto serves", process)
        yield Server(found[0])
        process.terminate()


@pytest.fixture(scope="module")
def stored(server: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[Stored, dict[str, bytes]]:
    """The study, run once with its results on S3, and the objects that this made. Read only."""
    clone = server.clone(tmp_path_factory.mktemp("with a blank") / "study")
    (clone.folder / "terminal.txt").write_text(clone.snakemake("--logger=cisterna"))
    return clone, server.objects()


def test_results_on_s3_are_those_of_a_local_run(stored: tuple[Stored, dict[str, bytes]], finished: Clone) -> None:
    """Also: a second run with the same seed, from nothing, gives the same bytes."""
    _, objects = stored
    group = f"results/{ANSWERS}"
    assert set(json.loads(objects[group]).values()) == {"answered"}  # the local run has no groups
    compared = {path: content for path, content in objects.items() if not path.startswith("results/studies/")}
    del compared[group]
    for path, content in compared.items():
        local = (finished.folder / path).read_bytes()
        if path.endswith("manifest.json"):  # holds seconds and memory
            assert json.loads(content)["identity"] == json.loads(local)["identity"], path
        else:
            assert content == local, path
    for path in ("checkpoint/adapter_model.safetensors", "eval/metrics.json", "eval/id.parquet"):
        assert {f"results/{RL}/{path}", f"results/{FEATURES}/{path}"} <= set(compared)


def test_terminal_follows_the_run_to_its_end(stored: tuple[Stored, dict[str, bytes]]) -> None:
    text = (stored[0].folder / "terminal.txt").read_text()
    assert re.search(r"  SFT: 3 of 3 done", text)
    assert re.search(r"^Study tiny is done: \d+ jobs in ", text, re.MULTILINE)


def test_copy_of_the_bucket_is_whole(stored: tuple[Stored, dict[str, bytes]], tmp_path: Path) -> None:
    clone, objects = stored
    for path, content in objects.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    clone.run("cisterna", "verify", str(tmp_path / "results"))


def test_only_artifacts_travel(stored: tuple[Stored, dict[str, bytes]]) -> None:
    clone, objects = stored
    assert {path.split("/")[1] for path in objects} == {
        "baselines", "data", "encoders", "features", "models", "studies", "tokens"
    }  # fmt: skip
    assert not [path for path in objects if "/." in path and not path.endswith("/.snakemake_timestamp")]
    assert list((clone.results / ".work" / RL).parent.rglob("*.safetensors"))
    assert (clone.results / "logs" / f"{RL}.log").is_file()
    assert {path.name for path in clone.results.iterdir()} == {".work", "benchmarks", "logs"}
    assert clone.copies() == set()


def test_keys_are_in_no_file(stored: tuple[Stored, dict[str, bytes]]) -> None:
    clone, objects = stored
    written = [path for path in clone.folder.rglob("*") if path.is_file()]
    assert len(written) > 50
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    assert not [path for path, content in objects.items() if SECRET.encode() in content]


def test_second_run_has_nothing_to_do(stored: tuple[Stored, dict[str, bytes]]) -> None:
    assert "Nothing to be done" in stored[0].snakemake()


def test_another_clone_with_younger_files_has_nothing_to_do_and_can_make_the_report(
    stored: tuple[Stored, dict[str, bytes]], server: Server, tmp_path: Path
) -> None:
    another = server.clone(tmp_path / "study")
    assert "Nothing to be done" in another.snakemake()
    assert another.copies() == set()
    another.snakemake("--report", "report.html")
    assert "what RL adds" in (another.folder / "report.html").read_text()


def test_touched_table_reruns_nothing_and_an_edited_one_its_task(
    stored: tuple[Stored, dict[str, bytes]], server: Server, tmp_path: Path
) -> None:
    shutil.copytree(stored[0].folder, tmp_path / "study", symlinks=True)
    clone = Stored(tmp_path / "study", server.url)
    table = clone.folder / CONFIG["tasks"]["hairpin"]["file"]
    table.touch()
    assert clone.todo() == []
    table.write_text(table.read_text() + "h200,GGGGGAAAAAACCCCC,high,bacterial,x\n")
    jobs = clone.todo()
    assert Job("data", "data/hairpin") in jobs
    assert Job("rl", f"{RL}/checkpoint") in jobs
    assert not [job for job in jobs if "splice-donor" in job.output]


def test_edited_recipe_fetches_the_lineage_and_runs_only_what_depends_on_it(
    stored: tuple[Stored, dict[str, bytes]], server: Server, tmp_path: Path
) -> None:
    """In another clone, with a copy of Snakemake's metadata, which say what was run."""
    evaluation, rung = f"results/{RL}/eval", RL.split("/rl-")[0]
    first, before = stored
    clone = server.clone(tmp_path / "study")
    shutil.copytree(first.folder / ".snakemake" / "metadata", clone.folder / ".snakemake" / "metadata")
    clone.write(study(recipes__rl__grpo__num_generations=4))
    jobs = [Job("rl", f"{RL}/checkpoint"), Job("answers", ANSWERS)]
    jobs += [Job("evaluate", f"{model}/eval") for model in (RL, rung, f"{rung[:-1]}1")]  # all of the group
    assert clone.todo() == sorted([*jobs, *REPORT])

    output = clone.snakemake(evaluation)

    fetched = set(re.findall(r"^Retrieving from storage: s3://bucket/lab/results/(\S+)$", output, re.MULTILINE))
    assert {path for path in fetched if path.endswith("checkpoint")} == {
        f"{model}/checkpoint"
        for model in ("models/tiny/base", CPT, rung, f"{rung[:-1]}1")  # e1 is of the group
    }
    changed = {path for path, content in server.objects().items() if before.get(path) != content}
    assert all(path.startswith(f"results/{RL}/") for path in changed)
    assert f"results/{RL}/checkpoint/adapter_model.safetensors" in changed
    assert clone.copies() == set()
    assert "Nothing to be done" in clone.snakemake(evaluation)


def test_job_that_fails_when_it_runs_again_leaves_the_others_alone_and_the_terminal_says_why(
    stored: tuple[Stored, dict[str, bytes]], server: Server, tmp_path: Path
) -> None:
    """The last test of the bucket: it removes a checkpoint from it."""
    clone = Stored(shutil.copytree(stored[0].folder, tmp_path / "study", symlinks=True), server.url)
    clone.write(study(recipes__sft__short__learning_rate=1e30))
    text = clone.snakemake(f"results/{FEATURES}/eval", "--logger=cisterna", code=1)
    end = text.partition("1 failed, 1 was not started")[2]
    assert f"failed: sft s3://bucket/lab/results/{FEATURES}/checkpoint\n  why:  the loss is nan" in end, text
    assert f"  log:  results/logs/{FEATURES}.log\n" in end
    assert "WorkflowError" not in text


def test_folder_that_another_process_stores_is_seen(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = StorageProviderSettings(endpoint_url=server.url, access_key="us", secret_key=SECRET)
    provider = StorageProvider(tmp_path, logging.getLogger(), settings=settings)

    def seen(key: str) -> tuple[bool, bool]:
        folder = provider.object(f"s3://other/{key}/checkpoint")
        before = folder.exists()
        provider.s3c.Object("other", f"{key}/checkpoint/manifest.json").put(Body=b"{}")
        return before, folder.exists()

    provider.s3c.create_bucket(Bucket="other")
    assert seen("plain") == (False, False)  # the plugin's own answer: once it sees the folder, the workaround can go
    for name in ("is_dir", "remove"):
        monkeypatch.setattr(StorageObject, name, getattr(StorageObject, name))  # so that it is put back
    unshared = SimpleNamespace(default_storage_provider="s3", shared_fs_usage=frozenset())
    snakefile.see_changed_s3_folders(SimpleNamespace(storage_settings=unshared))
    assert seen("worked-around") == (False, True)


def test_profile_for_kubernetes_is_read_and_plans_the_study(
    stored: tuple[Stored, dict[str, bytes]], server: Server, tmp_path: Path
) -> None:
    """A dry run: no cluster is here. It reads the profile with the real plugin, which refuses a wrong option."""
    clone = server.clone(tmp_path / "study")
    profile = ("--profile", str(ROOT / "profiles" / "kubernetes"))
    prefix = ("--default-storage-prefix", "s3://bucket/elsewhere")
    output = clone.run(*snakemake(*profile, *prefix, "--dry-run"), **clone.keys)
    assert "output: s3://bucket/elsewhere/results/models/tiny/base/checkpoint (send to storage)" in output
    assert re.search(r"resources: .*gpu_manufacturer=nvidia", output)
