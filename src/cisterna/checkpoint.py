"""What a stage leaves behind: the weights it changed and a manifest that says where they came from.

A checkpoint is a folder:

    manifest.json               written last, so its existence means that the checkpoint is complete
    adapter_model.safetensors   LoRA (and modules_to_save), with adapter_config.json    } one of
    model.safetensors           full weights, with config.json                          } the two
    tokenizer.json ...          in base checkpoints only

The manifest names every file with its SHA-256, the parent checkpoint with the parent's identity, the recipe, the seed
and the hashes of the data. `identity` is a hash over all of that and nothing measured, so the same run gives the same
identity, and a child knows whether its parent is still the one it was trained from.

Not for building models from checkpoints (`cisterna.models`), and not for trainer state (`cisterna.training`).
"""

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cisterna import __version__, files
from cisterna.errors import UserError

MANIFEST = "manifest.json"
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

    `parent` is the parent's checkpoint folder; `data` maps file names to their SHA-256; `trained` holds what the run
    is reproducible in (steps, tokens, final loss), `measured` what it is not (seconds, bytes of memory).
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
            path.name: files.sha256(path)
            for path in sorted(folder.iterdir())
            if path.is_file() and not path.name.startswith(".") and path.name != MANIFEST
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
    files.write_json(folder / MANIFEST, manifest)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint. Raises UserError where there is none or it was edited."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder}: not a checkpoint (no {MANIFEST}); build it with: snakemake --cores 1 {folder}")
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); delete {folder} and rerun") from None
    if not isinstance(manifest, dict):
        raise UserError(f"{path}: not a manifest (expected a JSON object); delete {folder} and rerun")
    facts = {key: manifest.get(key) for key in ("kind", "recipe", "seed", "parent", "data", "trained", "files")}
    if manifest.get("identity") != files.digest(facts):
        raise UserError(f"{path}: edited after it was written (its identity does not match); delete {folder} and rerun")
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """Read a manifest and check every file against it, and the parent's identity. Raises UserError naming the file."""
    manifest = read_manifest(folder)
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path}: missing; the manifest lists it. Delete {folder} and rerun")
        if files.sha256(path) != expected:
            raise UserError(f"{path}: its SHA-256 is not the one in the manifest. Delete {folder} and rerun")
    for path in sorted(folder.glob("*.safetensors")):
        if path.name not in manifest["files"]:
            raise UserError(f"{path}: weights that the manifest does not list. Delete {folder} and rerun")
    if manifest["parent"] is not None:
        parent = parent_of(folder, manifest)
        found = read_manifest(parent)["identity"]
        if found != manifest["parent"]["identity"]:
            raise UserError(
                f"{folder}: trained from another version of {parent} "
                f"(identity {manifest['parent']['identity'][:12]}, now {found[:12]}). Delete {folder} and rerun"
            )
    return manifest


def parent_of(folder: Path, manifest: Mapping[str, Any]) -> Path:
    """The parent's checkpoint folder."""
    return Path(os.path.normpath(folder / manifest["parent"]["path"]))


def lineage(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The verified chain of checkpoints from the base to `folder`, each with its manifest."""
    chain: list[tuple[Path, dict[str, Any]]] = []
    current: Path | None = folder
    while current is not None:
        manifest = verify(current)
        chain.append((current, manifest))
        current = parent_of(current, manifest) if manifest["parent"] else None
    return chain[::-1]


def packages() -> dict[str, str]:
    """Versions of the packages that determine weights."""
    return {name: version(name) for name in PACKAGES} | {"cisterna": __version__}


def _git_commit() -> str | None:
    """The commit of the source tree, None where it is not a git checkout."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
