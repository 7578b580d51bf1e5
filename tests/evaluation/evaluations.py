"""What the tests of evaluation share: options, and a model that is asked directly."""

import pandas as pd
import torch

from cisterna.evaluation import generate
from cisterna.scoring.answers import Labels

OPTIONS = {"max_new_tokens": 40, "batch_size": 7, "bootstrap": 200}
CPU = torch.device("cpu")
LABELS = ("spliced", "skipped")
DEEP = OPTIONS | {"samples": 2, "sample_temperature": 1.5, "calibration": True}


def ask(model, tokens, prompts, options, labels=LABELS):
    loaded = generate.LoadedModel(model, tokens, CPU)
    frame = pd.DataFrame({"prompt": prompts, "segments": [[]] * len(prompts)})
    outputs = generate.generate(loaded, loaded.encode(frame), options)
    return generate.read(loaded, outputs, Labels(labels).parse)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}
