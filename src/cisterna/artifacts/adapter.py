"""adapter_config.json: PEFT's configuration of an adapter checkpoint, with what users of PEFT alone have to know.

An adapter that was trained on another stage's checkpoint gives nonsense on the base model alone, and PEFT does not
check which weights it puts an adapter on. So the file of such an adapter

- names the parent, in words, as `base_model_name_or_path`: `AutoPeftModel...` and transformers then refuse to load it
  with an error that has these words. The parent's path itself would not do: for a parent that is an adapter,
  `AutoPeftModel` loads the base of that, and loses the parent without an error
- has the key NOTE, which PEFT does not know and warns of whenever it puts the adapter on a model

and a README.md beside it says what to do. An adapter that was trained on a base checkpoint has neither. Not for the
adapters that `cisterna export` writes, which are whole (`cisterna.publishing`).
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cisterna.artifacts import checkpoint, files

if TYPE_CHECKING:
    from peft import PeftConfig

FILE = "adapter_config.json"
NOTE = "not_an_adapter_of_the_base_see_README"
README = """\
# An adapter of another checkpoint

This adapter was trained on the checkpoint `{parent}` ({kind}, identity {identity}), with the updates of
all stages before it, and works on that model only. On the base model alone it gives nonsense, without an error.

To use it outside Cisterna:

    cisterna export CHECKPOINT --output FOLDER              # the whole model, merged
    cisterna export CHECKPOINT --output FOLDER --adapter    # one adapter with the updates of all stages
"""


def write(source: Path, folder: Path, published: Path, parent: Path) -> None:
    """Write the configuration `source`, PEFT's own, into `folder`, to be published as `published`, trained on `parent`.

    Without what differs between two identical runs: the order of a set, and the path of the base.
    """
    config = files.read_json(source) | {"base_model_name_or_path": None}
    for key in ("target_modules", "exclude_modules"):
        if isinstance(config[key], list):
            config[key] = sorted(config[key])
    manifest = checkpoint.read_manifest(parent)
    if manifest["kind"] != "base":
        place = os.path.relpath(parent, published)
        config |= _words(place)
        text = README.format(parent=place, kind=manifest["kind"], identity=manifest["identity"][:12])
        (folder / "README.md").write_text(text)
    files.write_json(folder / FILE, config)


def _words(parent: str) -> Mapping[str, Any]:
    return {"base_model_name_or_path": f"the checkpoint {parent} and not the base: see README.md", NOTE: True}


def read(folder: Path) -> "PeftConfig":
    """PEFT's configuration of an adapter checkpoint, for the model of its parent."""
    from peft import PeftConfig

    stored = files.read_json(folder / FILE) | {"base_model_name_or_path": None}
    stored.pop(NOTE, None)
    return PeftConfig.from_peft_type(**stored)
