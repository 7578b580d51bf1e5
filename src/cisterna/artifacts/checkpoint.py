"""Checkpoints: the weights that a stage changed, and a manifest that says how they were made.

A checkpoint is a folder:

    manifest.json               written last, so its existence means that the checkpoint is complete
    adapter_model.safetensors   LoRA (and modules_to_save), with adapter_config.json    } one of
    model.safetensors           full weights, with config.json                          } the two
    tokenizer.json ...          in base checkpoints only

The manifest lists every file with its SHA-256, the parent with its identity, the recipe, the seed and the hashes of the
data. `identity` is a hash of all that and of nothing measured. So the same run gives the same identity, and a changed
parent is noticed, because its child records the identity. `seal` is a hash of the whole rest of the manifest.

Not for building models from checkpoints (`cisterna.models`), and not for trainer state (`cisterna.training`).
"""

import itertools
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cisterna import __version__
from cisterna.artifacts import files
from cisterna.errors import UserError

MANIFEST = "manifest.json"
SNAKEMAKE = ".snakemake_timestamp"  # the one file that another program puts into a published checkpoint
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "safetensors")


def write_manifest(
    folder: Path,
    *,
    published: Path,
    kind: str,
    parent: Path | None,
    recipe: Mapping[str, Any],
    seed: int,
    data: Mapping[str, str],
    trained: Mapping[str, Any],
    measured: Mapping[str, Any],
) -> dict[str, Any]:
    """Describe the files of `folder`, which is about to be published as `published`.

    `parent` is the parent's checkpoint folder; `data` maps file names to their SHA-256; `trained` are results that
    are reproducible (steps, tokens), `measured` those that are not (seconds, bytes of memory).
    """
    facts = {
        "kind": kind,
        "recipe": dict(recipe),
        "seed": seed,
        "parent": None
        if parent is None
        else {"path": os.path.relpath(parent, published), "identity": read_manifest(parent)["identity"]},
        "data": dict(data),
        "trained": dict(trained),
        "files": {
            path.relative_to(folder).as_posix(): files.sha256(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != MANIFEST
        },
    }
    manifest = facts | {
        "identity": files.digest(facts),
        "measured": dict(measured),
        "provenance": {
            "packages": packages(),
            "python": platform.python_version(),
            "machine": platform.machine(),
            "git_commit": _git_commit(),
        },
    }
    manifest["seal"] = files.digest(manifest)
    files.write_json(folder / MANIFEST, manifest)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint. UserError if there is none, or if it was edited."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder}: not a checkpoint (no {MANIFEST}); build it with: snakemake --cores 1 {folder}")
    try:
        text = path.read_text()
        manifest = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); delete {folder} and rerun") from None
    if not isinstance(manifest, dict):
        raise UserError(f"{path}: not a manifest (expected a JSON object); delete {folder} and rerun")
    facts = {key: manifest.get(key) for key in ("kind", "recipe", "seed", "parent", "data", "trained", "files")}
    sealed = {key: value for key, value in manifest.items() if key != "seal"}
    hashes = {"identity": files.digest(facts), "seal": files.digest(sealed)}
    if manifest | hashes != manifest or text != files.json_text(manifest):
        raise UserError(f"{path}: edited after it was written (its hashes do not match); delete {folder} and rerun")
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """Read a manifest and check every file against it, and the parent's identity. Raises UserError naming the file."""
    manifest = read_manifest(folder)
    changed = (changed_file(folder, name, digest) for name, digest in manifest["files"].items())
    problem = next(filter(None, itertools.chain(changed, strays(folder, manifest))), None)
    if not problem and manifest["parent"] is not None:
        problem = other_parent(folder, manifest, read_parent(folder, manifest)[1])
    if problem:
        raise UserError(problem)
    return manifest


def changed_file(folder: Path, name: str, digest: str) -> str | None:
    """What is wrong with a file that the manifest of `folder` lists with this SHA-256; None if nothing is."""
    path = folder / name
    if not path.is_file():
        return f"{path}: missing; the manifest lists it. Delete {folder} and rerun"
    if files.sha256(path) != digest:
        return f"{path}: its SHA-256 is not the one in the manifest. Delete {folder} and rerun"
    return None


def strays(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Problems with files in a checkpoint's folder that are not in its manifest: a library might read them."""
    known = {MANIFEST, SNAKEMAKE, *manifest["files"]}
    known |= {parent.as_posix() for name in manifest["files"] for parent in Path(name).parents}  # "." among them
    return [
        f"{folder / path}: the manifest does not list it, so it is no part of the checkpoint. Move it elsewhere"
        for path in (path.relative_to(folder) for path in sorted(folder.rglob("*")))
        if path.as_posix() not in known and path.parent.as_posix() in known | {"."}
    ]


def other_parent(folder: Path, manifest: Mapping[str, Any], parent: Mapping[str, Any]) -> str | None:
    """The problem if `parent`, the parent's manifest as it is now, is not the one that was trained from; else None."""
    then, now = manifest["parent"]["identity"], parent["identity"]
    if then == now:
        return None
    return (
        f"{folder}: trained from another version of {parent_of(folder, manifest)} "
        f"(identity {then[:12]}, now {now[:12]}). Delete {folder} and rerun"
    )


def parent_of(folder: Path, manifest: Mapping[str, Any]) -> Path:
    """The parent's checkpoint folder."""
    return Path(os.path.normpath(folder / manifest["parent"]["path"]))


def read_parent(folder: Path, manifest: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The parent's checkpoint folder and its manifest. UserError, which says which parent, if it is not there."""
    parent = parent_of(folder, manifest)
    if not (parent / MANIFEST).is_file():
        raise UserError(
            f"{folder}: its parent is missing: expected the checkpoint {parent} (identity "
            f"{manifest['parent']['identity'][:12]}), without which it is no model. Copy that too, with all its "
            f"parents, to the same place relative to this one; or make one folder of the whole where all of them are, "
            f"with `cisterna export`; or build it with: snakemake --cores 1 {parent}"
        )
    return parent, read_manifest(parent)


def ancestors(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The chain of checkpoints from the base to `folder`, each with its manifest; their files are not read."""
    chain = [(folder, read_manifest(folder))]
    while chain[-1][1]["parent"]:
        chain.append(read_parent(*chain[-1]))
    return chain[::-1]


def lineage(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The verified chain of checkpoints from the base to `folder`, each with its manifest."""
    return [(path, verify(path)) for path, _ in ancestors(folder)]


def packages() -> dict[str, str]:
    """Versions of the packages that determine weights."""
    return {name: version(name) for name in PACKAGES} | {"cisterna": __version__}


def _git_commit() -> str | None:
    """The commit of the source tree, None where it is not a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
