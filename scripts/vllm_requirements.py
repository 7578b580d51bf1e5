"""Print what the installed vLLM needs beyond requirements.lock, as lines for pip. Called by `make vllm` on a GPU.

    python scripts/vllm_requirements.py > .venv/vllm.txt

What the lock pins is left out, and so are torchvision, torchaudio and torchcodec: vLLM needs them for images and sound.
"""

import re
from importlib.metadata import requires
from pathlib import Path

NOT_FOR_TEXT = {"torchvision", "torchaudio", "torchcodec", "pynvvideocodec", "opencv-python-headless"}


def name_of(line: str) -> str:
    """The name at the start of a requirement, as the package index writes it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", line)[0]).lower()


def main() -> None:
    """Print them, one a line."""
    locked = {name_of(line) for line in Path("requirements.lock").read_text().splitlines() if "==" in line}
    for line in requires("vllm") or []:
        if "extra ==" not in line and name_of(line) not in locked | NOT_FOR_TEXT:
            print(line)


if __name__ == "__main__":
    main()
