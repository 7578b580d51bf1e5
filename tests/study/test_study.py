"""What a config may say, what is refused and how, and what a valid one expands to."""

import contextlib
import copy
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cisterna import study
from cisterna.constants import FORMS
from cisterna.errors import UserError
from cisterna.scoring import rewards
from cisterna.study import config
from cisterna.tasks import catalog

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = ROOT / "config" / "config.yaml"
Config = dict[str, Any]

OWN_TABLE = {
    "file": "data/my-assay.csv",
    "modality": "protein",
    "columns": {"id": "variant", "sequence": "seq", "label": "class", "group": "family"},
    "labels": ["low", "high"],
    "question": "Is this variant active?",
    "ood": ["kinase"],
}


def small() -> Config:
    """A small valid config, written anew for every test that breaks it."""
    return {
        "study": "small",
        "seeds": [0],
        "backbones": {
            "nano": {
                "architecture": {"model_type": "qwen3", "max_position_embeddings": 512},
                "tokenizer": {"vocab_size": 512, "files": ["text.txt"]},
            }
        },
        "corpora": {"text": {"file": "text.txt", "modality": "text"}},
        "tasks": {"splice-donor": {}, "cell-type": {"train": 300}},
        "recipes": {
            "cpt": {"bio": {"corpora": ["text"]}},
            "sft": {"brief": {"epochs": [1, 2, 4, 8]}, "long": {"epochs": [8, 16]}},
            "rl": {"grpo": {"epochs": [1, 2, 4, 8]}},
        },
        "lineages": [{"cpt": ["none", "bio"], "sft": ["brief"], "rl": [{"recipe": "grpo", "from": [1]}]}],
    }


def featured() -> Config:
    """`small` with two encoders, one made here and one pretrained, and splice-donor in two forms."""
    given = small()
    given["corpora"]["rna"] = {"file": "rna.fasta", "modality": "rna"}
    given["encoders"] = {
        "esm2": {"pretrained": "facebook/esm2_t30_150M_UR50D", "letters": {"U": "T"}, "bank": False},
        "nano-esm": {
            "architecture": {"model_type": "esm", "hidden_size": 8, "num_hidden_layers": 4},
            "training": {"corpora": ["rna"]},
        },
    }
    given["tasks"]["splice-donor"] = {"sequences": ["tokens", "features"], "encoder": "nano-esm"}
    return given


# --- Expansion ---


def test_default_study_has_the_promised_models():
    default = study.read(DEFAULT)
    kinds = [model.kind for model in default.models]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "base": 1,
        "cpt": 1,
        "sft": 4 * 2 * 4 + 2 * 4,
        "rl": 4 * (2 + 1) + 2 * 2,
    }
    assert sum(kind != "base" for kind in kinds) >= 30
    assert len(default.evaluations()) == 40 + 16 + 2 * 4
    assert default.seeds == (0,)
    assert default.corpora == ("dna", "rna", "protein", "text")
    assert default.tasks == ("promoter-expression", "splice-donor", "cell-type", "protein-fitness")
    assert default.encoders == ("nano-esm",)
    assert default.banks == (("nano-esm", "promoter-expression"), ("nano-esm", "protein-fitness"))


def test_default_study_has_exactly_these_paths_for_one_task():
    default = study.read(DEFAULT)
    paths = [model.path for model in default.models if model.task == "splice-donor"]
    assert sorted(paths) == sorted(
        f"models/nano/{origin}/splice-donor/s0/sft-brief/{rest}"
        for origin, starts in {"base": (2, 8), "cpt-bio": (8,)}.items()
        for rest in ("e1", "e2", "e4", "e8", *(f"e{start}/rl-grpo/e2" for start in starts))
    )
    assert [path for path, _, task in default.evaluations() if task == "splice-donor"][:2] == [
        "models/nano/base/splice-donor/eval",
        "models/nano/base/splice-donor/s0/sft-brief/e1/eval",
    ]
    assert (
        "models/nano/cpt-bio/splice-donor/eval",
        "models/nano/cpt-bio",
        "splice-donor",
    ) in default.evaluations()


def test_rung_resumes_from_the_rung_before_and_starts_from_one_parent():
    loaded = study.load(small())
    folder = "models/nano/cpt-bio/splice-donor/s0/sft-brief"
    rungs = [loaded.model(f"{folder}/e{epochs}") for epochs in (1, 2, 4, 8)]
    assert {rung.parent for rung in rungs} == {"models/nano/cpt-bio"}
    assert [rung.previous for rung in rungs] == [None, *(rung.path for rung in rungs[:-1])]
    assert [rung.epochs for rung in rungs] == [rung.sft_epochs for rung in rungs] == [1, 2, 4, 8]
    assert all(loaded.ladder(rung) == tuple(rung.path for rung in rungs) for rung in rungs)
    reinforced = loaded.model(f"{folder}/e1/rl-grpo/e4")
    assert reinforced.parent == f"{folder}/e1"
    assert reinforced.previous == f"{folder}/e1/rl-grpo/e2"
    assert (reinforced.sft, reinforced.sft_epochs) == ("brief", 1)
    assert (reinforced.rl, reinforced.rl_epochs, reinforced.recipe) == ("grpo", 4, "grpo")
    assert loaded.model("models/nano/cpt-bio").parent == "models/nano/base"


def test_other_schedules_make_every_rung_a_run_of_its_own():
    given = small()
    given["recipes"]["sft"]["brief"]["lr_scheduler_type"] = "cosine"
    given["recipes"]["rl"]["grpo"]["lr_scheduler_type"] = "linear"
    loaded = study.load(given)
    tuned = [model for model in loaded.models if model.kind in ("sft", "rl")]
    assert tuned
    assert all(model.previous is None for model in tuned)
    assert all(loaded.ladder(model) == (model.path,) for model in tuned)


def test_cold_start_hangs_below_the_untuned_model():
    given = small()
    given["lineages"] = [{"tasks": ["splice-donor"], "rl": [{"recipe": "grpo", "from": ["cold"]}]}]
    loaded = study.load(given)
    model = loaded.model("models/nano/base/splice-donor/s0/rl-grpo/e1")
    assert model.parent == "models/nano/base"
    assert (model.sft, model.sft_epochs, model.task, model.seed) == (None, 0, "splice-donor", 0)
    assert [model.kind for model in loaded.models] == ["base", "rl", "rl", "rl", "rl"]


def budget(schedule: str) -> study.Study:
    given = small()
    given["recipes"]["sft"]["brief"]["lr_scheduler_type"] = schedule
    given["recipes"]["rl"]["grpo"]["lr_scheduler_type"] = schedule
    given["lineages"] = [
        {
            "tasks": ["splice-donor"],
            "sft": ["brief"],
            "rl": [{"recipe": "grpo"}],
            "budget": {"epochs": 8, "split": [[8, 0], [4, 4], [0, 8]]},
        }
    ]
    return study.load(given)


def below(loaded: study.Study) -> list[str]:
    start = "models/nano/base/splice-donor/s0/"
    return [model.path.removeprefix(start) for model in loaded.models if model.task]


def test_fixed_budget_of_independent_runs_trains_its_splits_alone():
    assert below(budget("cosine")) == [
        "sft-brief/e8",
        "sft-brief/e4",
        "sft-brief/e4/rl-grpo/e4",
        "rl-grpo/e8",
    ]


def test_fixed_budget_of_ladders_includes_the_rungs_below():
    assert below(budget("constant")) == [
        *(f"sft-brief/e{epochs}" for epochs in (1, 2, 4, 8)),
        *(f"sft-brief/e4/rl-grpo/e{epochs}" for epochs in (1, 2, 4)),
        *(f"rl-grpo/e{epochs}" for epochs in (1, 2, 4, 8)),
    ]


def test_lineages_and_studies_share_stages_by_path():
    given = small()
    one = study.load(given)
    given["lineages"] = [*given["lineages"], *copy.deepcopy(given["lineages"])]
    assert study.load(given).models == one.models
    given["study"] = "other"
    given["lineages"] = [{"tasks": ["cell-type"], "cpt": ["bio"], "sft": ["brief", "long"]}]
    other = study.load(given)
    shared = {model.path for model in one.models} & {model.path for model in other.models}
    assert "models/nano/cpt-bio/cell-type/s0/sft-brief/e8" in shared
    assert all(one.model(path) == other.model(path) for path in shared)


def test_each_seed_has_its_own_sft_and_shares_cpt():
    given = small()
    given["seeds"] = [0, 7]
    loaded = study.load(given)
    assert sum(model.kind == "cpt" for model in loaded.models) == 1
    assert {model.seed for model in loaded.models} == {None, 0, 7}
    assert len({model.path for model in loaded.models}) == len(loaded.models)


def test_loading_the_filled_config_again_changes_nothing():
    for loaded in (study.read(DEFAULT), study.load(small()), study.load(featured()), budget("constant")):
        again = study.load(json.loads(json.dumps(loaded.config)))
        assert again == loaded


def test_config_that_is_loaded_is_not_changed():
    given = small()
    study.load(given)
    assert given == small()


def test_options_are_the_recipe_without_cisternas_keys():
    given = small()
    given["recipes"]["sft"]["brief"] |= {"learning_rate": 1e-4, "lora": {"r": 4, "lora_alpha": 8}}
    loaded = study.load(given)
    assert loaded.options("sft", "brief") == {
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
    }
    assert loaded.recipe("sft", "brief")["lora"]["r"] == 4


def test_own_table_needs_no_built_in_name():
    given = small()
    given["tasks"] = {"my-assay": dict(OWN_TABLE)}
    loaded = study.load(given)
    assert loaded.config["tasks"]["my-assay"]["ood"] == ["kinase"]
    assert loaded.tasks == ("my-assay",)


def test_each_form_has_its_own_sft_and_rl_below_shared_parents():
    loaded = study.load(featured())
    tokens, features = (f"models/nano/cpt-bio/splice-donor{form}/s0/sft-brief" for form in ("", "/features-nano-esm"))
    for folder, form, encoder in ((tokens, "tokens", None), (features, "features", "nano-esm")):
        for path in (f"{folder}/e2", f"{folder}/e1/rl-grpo/e4"):
            model = loaded.model(path)
            assert (model.task, model.sequences, model.encoder) == ("splice-donor", form, encoder)
        assert loaded.model(f"{folder}/e1").parent == "models/nano/cpt-bio"
        assert loaded.model(f"{folder}/e2").previous == f"{folder}/e1"
        assert loaded.model(f"{folder}/e1/rl-grpo/e1").parent == f"{folder}/e1"
        assert loaded.work(loaded.model(f"{folder}/e2")) == f"results/.work/{folder}"
    start = loaded.model("models/nano/cpt-bio")
    assert (start.sequences, start.encoder) == ("tokens", None)
    without = study.load(small())
    assert {model.path for model in loaded.models if not model.encoder} == {model.path for model in without.models}
    assert sum(model.encoder is not None for model in loaded.models) == 2 * (4 + 4)
    untuned = [evaluation for evaluation in loaded.evaluations() if not loaded.model(evaluation[1]).task]
    assert untuned == [evaluation for evaluation in without.evaluations() if not without.model(evaluation[1]).task]


def test_cold_start_with_features_hangs_below_its_form():
    given = featured()
    given["tasks"]["splice-donor"]["sequences"] = "both"
    given["lineages"] = [{"tasks": ["splice-donor"], "rl": [{"recipe": "grpo", "from": ["cold"]}]}]
    model = study.load(given).model("models/nano/base/splice-donor/both-nano-esm/s0/rl-grpo/e1")
    assert (model.parent, model.sequences, model.encoder) == ("models/nano/base", "both", "nano-esm")


def test_lineage_picks_forms_of_its_tasks():
    given = featured()
    given["lineages"] = [
        {"sft": ["brief"], "sequences": ["tokens"]},
        {"sft": ["long"], "sequences": ["features"], "tasks": ["splice-donor"]},
    ]
    forms = {(model.task, model.sft, model.sequences) for model in study.load(given).models if model.task}
    assert forms == {
        ("splice-donor", "brief", "tokens"),
        ("cell-type", "brief", "tokens"),
        ("splice-donor", "long", "features"),
    }


def test_banks_are_those_in_use_and_a_live_encoder_has_none():
    given = featured()
    loaded = study.load(given)
    assert loaded.encoders == ("nano-esm",)
    assert loaded.banks == (("nano-esm", "splice-donor"),)
    folder = "models/nano/base/splice-donor"
    assert loaded.bank(loaded.model(f"{folder}/features-nano-esm/s0/sft-brief/e1")) == "features/nano-esm/splice-donor"
    assert loaded.bank(loaded.model(f"{folder}/s0/sft-brief/e1")) is None
    given["tasks"]["splice-donor"]["encoder"] = "esm2"
    live = study.load(given)
    assert (live.encoders, live.banks) == (("esm2",), ())
    assert live.bank(live.model(f"{folder}/features-esm2/s0/sft-brief/e1")) is None
    given["lineages"][0]["sequences"] = ["tokens"]
    assert study.load(given).encoders == ()


def test_encoder_is_what_makes_it_and_reading_how_it_is_read():
    loaded = study.load(featured())
    assert loaded.encoder("nano-esm") == {
        "architecture": {"model_type": "esm", "hidden_size": 8, "num_hidden_layers": 4},
        "training": {
            "corpora": ["rna"],
            "block_size": 256,
            "mlm_probability": 0.15,
            "seed": 0,
            "save_minutes": 10.0,
            "num_train_epochs": 1.0,
        },
    }
    assert loaded.encoder("esm2") == {
        "pretrained": "facebook/esm2_t30_150M_UR50D",
        "revision": None,
        "trust_remote_code": False,
        "package": "transformers",
        "dtype": "float32",
    }
    assert loaded.reading("esm2") == {
        "layer": -1,
        "pool": None,
        "flank": 1024,
        "letters": {"U": "T"},
        "storage": "float16",
        "batch_tokens": 4096,
        "trained": False,
    }
    for name, encoder in loaded.config["encoders"].items():
        assert encoder == {**loaded.encoder(name), **loaded.reading(name), "bank": encoder["bank"]}


def test_data_of_a_task_do_not_depend_on_its_forms():
    assert study.load(featured()).spec("splice-donor") == study.load(small()).spec("splice-donor")


def test_stage_gets_the_keys_of_the_bridge_only_where_it_reads_features():
    loaded = study.load(featured())
    folder = "models/nano/base/splice-donor"
    for form, sft, rl in (
        ("features-nano-esm/", {"bridge"}, {"bridge", "train_bridge"}),
        ("", set(), set()),
    ):
        for path, bridge in (("e1", sft), ("e1/rl-grpo/e1", rl)):
            given = loaded.stage(loaded.model(f"{folder}/{form}s0/sft-brief/{path}"))
            assert {"bridge", "train_bridge"} & set(given) == bridge
            assert "epochs" not in given
            assert given["save_minutes"] == 10.0


def test_unknown_path_is_a_user_error_with_the_nearest_model():
    loaded = study.load(small())
    with pytest.raises(UserError, match="Did you mean models/nano/cpt-bio"):
        loaded.model("models/nano/cpt-boi")


def test_thousand_lineages_expand_once_each():
    given = small()
    given["seeds"] = list(range(40))
    given["recipes"]["sft"] = {f"r{rank}": {"epochs": [1, 2, 4, 8]} for rank in (4, 16, 64)}
    given["lineages"][0] |= {"sft": ["r4", "r16", "r64"]}
    loaded = study.load(given)
    tuned = 2 * 2 * 40 * 3  # tasks x CPT x seeds x recipes
    assert len(loaded.models) == 2 + tuned * (4 + 4)
    assert len(loaded.evaluations()) == tuned * (4 + 4) + 2 * 2
    assert all(loaded.model(model.path) is model for model in loaded.models)


# --- YAML ---


def write(folder: Path, text: str) -> Path:
    path = folder / "bad.yaml"
    path.write_text(text)
    return path


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("study: [a\nseeds: [0]\n", ["bad.yaml:2:", "broken YAML"]),
        ("study: a\n\tseeds: [0]\n", ["bad.yaml:2:", "broken YAML"]),
        ("study: !!python/object:os.system x\n", ["bad.yaml:1:", "broken YAML"]),
        ("study: a\x00\n", ["bad.yaml", "broken YAML"]),
        ("study: &a [*a]\n", ["bad.yaml", "broken YAML"]),
        ("study: 2026-02-30\n", ["bad.yaml", "broken YAML"]),
        ("", ["bad.yaml", "nothing", "a mapping"]),
        ("- a\n- b\n", ["bad.yaml", "a mapping"]),
        ("study: a\nseeds: [0]\nstudy: b\n", ["bad.yaml:3: study", "again (first in line 1)"]),
        ("tasks:\n  no: {}\n", ["bad.yaml", "tasks.False", "the boolean false", "quotes"]),
    ],
)
def test_broken_yaml_is_named_with_its_line(tmp_path, text, parts):
    message = refusal(lambda: study.read(write(tmp_path, text)))
    for part in parts:
        assert part in message


def test_unreadable_config_is_a_user_error(tmp_path):
    missing = tmp_path / "none.yaml"
    assert refusal(lambda: study.read(missing)).startswith(f"{missing}: cannot read")
    assert "cannot read" in refusal(lambda: study.read(tmp_path))
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"study: \xff\xfe\n")
    assert "not UTF-8" in refusal(lambda: study.read(binary))


def test_numbers_without_a_dot_are_numbers(tmp_path):
    given = small()
    given["recipes"]["sft"]["brief"] |= {"learning_rate": "@", "fraction": "@"}
    text = yaml.safe_dump(given).replace("'@'", "1e-3")
    loaded = study.read(write(tmp_path, text))
    assert loaded.recipe("sft", "brief")["learning_rate"] == 0.001
    assert loaded.recipe("sft", "brief")["fraction"] == 0.001
    given = featured()
    encoder = given["encoders"]["nano-esm"]
    encoder["training"] |= {"learning_rate": "@", "mlm_probability": "@"}
    encoder["architecture"]["layer_norm_eps"] = "@"
    made = study.read(write(tmp_path, yaml.safe_dump(given).replace("'@'", "1e-3"))).encoder("nano-esm")
    assert made["training"]["learning_rate"] == made["training"]["mlm_probability"] == 0.001
    assert made["architecture"]["layer_norm_eps"] == 0.001


def test_merge_keys_are_not_repeated_keys(tmp_path):
    text = yaml.safe_dump(small()).replace("  sft:\n", "  sft:\n", 1)
    text = text.replace("    long:\n      epochs:", "    long:\n      <<: {fraction: 0.5}\n      epochs:")
    loaded = study.read(write(tmp_path, text))
    assert loaded.recipe("sft", "long")["fraction"] == 0.5


def test_repeated_key_is_reported_beside_other_problems(tmp_path):
    text = yaml.safe_dump(small() | {"colour": "blue"}) + "study: again\n"
    message = refusal(lambda: study.read(write(tmp_path, text)))
    assert message.startswith("2 problems in ")
    assert "colour: found an unknown key" in message
    assert "study: found the key again" in message


def test_problems_carry_their_lines_and_come_in_order(tmp_path):
    given = small()
    given["recipes"]["sft"]["brief"]["learning_rat"] = 1.0
    given["colour"] = "blue"
    path = write(tmp_path, yaml.safe_dump(given, sort_keys=False))
    lines = path.read_text().splitlines()
    message = refusal(lambda: study.read(path)).splitlines()
    assert message[0] == f"2 problems in {path}"
    for text, key in zip(message[1:], ("learning_rat", "colour"), strict=True):
        number = next(index for index, line in enumerate(lines, 1) if f"{key}:" in line)
        assert text.startswith(f"{path}:{number}: ")


# --- Refusals ---


def change(*keys: Any, to: Any) -> Callable[[Config], None]:
    """A change of one value, named by its keys."""

    def apply(given: Config) -> None:
        place: Any = given
        for key in keys[:-1]:
            place = place.setdefault(key, {}) if isinstance(place, dict) else place[key]
        place[keys[-1]] = to

    return apply


def own(**changes: Any) -> Callable[[Config], None]:
    """A table of the user's own, with changes; None removes a key."""
    table = {key: value for key, value in (OWN_TABLE | changes).items() if value is not None}
    return change("tasks", "mine", to=table)


SFT = ("recipes", "sft", "brief")
RL = ("recipes", "rl", "grpo")
CPT = ("recipes", "cpt", "bio")
NANO = ("backbones", "nano")
START = ("lineages", 0, "rl", 0)

BROKEN = {
    # unknown and missing keys
    "unknown key": (change("colour", to=1), "colour", "an unknown key"),
    "typo": (change("backbone", to={}), "backbone", "Did you mean backbones?"),
    "missing": (lambda given: given.pop("tasks"), "tasks", "no such key"),
    "empty": (change("tasks", to={}), "tasks", "at least 1 entry"),
    "null": (change("tasks", "splice-donor", to=None), "tasks.splice-donor", "nothing (null)"),
    # names
    "upper case": (change("study", to="My_Study"), "study", "lower-case"),
    "number": (change("study", to=7), "study", "put it in quotes"),
    "slash": (change("tasks", "a/b", to=OWN_TABLE), "tasks.a/b", "lower-case"),
    "dot first": (change("tasks", ".hidden", to=OWN_TABLE), "tasks..hidden", "starting with"),
    "dots": (change("study", to="a..b"), "study", 'without ".."'),
    "newline": (change("study", to="a\n"), "study", "lower-case"),
    "option": (change("study", to="-rf"), "study", "starting with"),
    "long": (change("study", to="a" * 65), "study", "64"),
    "reserved": (change("backbones", "base", to={"pretrained": "x"}), "backbones.base", "another"),
    "none": (change("recipes", "cpt", "none", to={"corpora": ["text"]}), "recipes.cpt.none", "an"),
    "cold": (change("recipes", "sft", "cold", to={"epochs": [1]}), "recipes.sft.cold", "another"),
    # seeds
    "negative seed": (change("seeds", to=[-1]), "seeds[0]", ">= 0"),
    "seed twice": (change("seeds", to=[1, 1]), "seeds", "no entry twice"),
    "real seed": (change("seeds", to=[1.0]), "seeds[0]", "an integer"),
    # backbones
    "two kinds": (change(*NANO, "pretrained", to="x"), "backbones.nano", "both architecture"),
    "no kind": (change(*NANO, to={}), "backbones.nano", "neither architecture"),
    "no tokenizer": (
        lambda given: given["backbones"]["nano"].pop("tokenizer"),
        "nano.tokenizer",
        "vocab_size",
    ),
    "revision": (change(*NANO, "revision", to="main"), "backbones.nano.revision", "beside arch"),
    "seed": (
        change("backbones", "hub", to={"pretrained": "x", "seed": 1}),
        "hub.seed",
        "made here",
    ),
    "model type": (change(*NANO, "architecture", "model_type", to="qwen33"), "model_type", "qwen3"),
    "architecture": (
        change(*NANO, "architecture", "hidden_sise", to=8),
        "architecture.hidden_sise",
        "hidden_size",
    ),
    "width": (change(*NANO, "architecture", "hidden_size", to="wide"), "hidden_size", "an integer"),
    "dtype": (
        change("backbones", "hub", to={"pretrained": "x", "dtype": "half"}),
        "hub.dtype",
        "one of auto",
    ),
    # corpora
    "modality": (
        change("corpora", "text", "modality", to="txet"),
        "corpora.text.modality",
        "Did you mean text?",
    ),
    "no corpus": (
        change(*CPT, "corpora", to=["txt"]),
        "recipes.cpt.bio.corpora[0]",
        "Did you mean text?",
    ),
    # tasks
    "task without file": (
        change("tasks", "splice-donr", to={}),
        "tasks.splice-donr",
        "Did you mean splice-donor?",
    ),
    "size": (change("tasks", "cell-type", "id", to=0), "tasks.cell-type.id", ">= 1"),
    "built-in labels": (
        change("tasks", "cell-type", "labels", to=["a", "b"]),
        "tasks.cell-type.labels",
        "built in",
    ),
    "built-in ood": (
        change("tasks", "cell-type", "ood", to=["a"]),
        "tasks.cell-type.ood",
        "integer",
    ),
    "built-in file": (
        change("tasks", "cell-type", to=OWN_TABLE),
        "tasks.cell-type",
        "another name",
    ),
    "no question": (own(question=None), "tasks.mine.question", "beside file"),
    "no groups": (own(ood=None), "tasks.mine.ood", "beside file"),
    "ood number": (own(ood=100), "tasks.mine.ood", "list of groups"),
    "no group column": (
        own(columns={"id": "a", "sequence": "b", "label": "c"}),
        "tasks.mine.columns.group",
        "given",
    ),
    "column role": (
        own(columns=OWN_TABLE["columns"] | {"weight": "w"}),
        "columns.weight",
        "unknown",
    ),
    "one label": (own(labels=["a"]), "tasks.mine.labels", "at least 2"),
    "label twice": (own(labels=["a", "a"]), "tasks.mine.labels", "no entry twice"),
    "label yes": (own(labels=[True, False]), "tasks.mine.labels[0]", "quotes"),
    "label lines": (own(labels=["a", "b\nc"]), "tasks.mine.labels[1]", "one line"),
    "label tag": (own(labels=["a", "<b"]), "tasks.mine.labels[1]", "without <"),
    "label spaces": (own(labels=["a", " b"]), "tasks.mine.labels[1]", "spaces"),
    "label empty": (own(labels=["a", ""]), "tasks.mine.labels[1]", "not empty"),
    # recipes
    "option typo": (
        change(*SFT, "learning_rat", to=1.0),
        "recipes.sft.brief.learning_rat",
        "Did you mean learning_rate?",
    ),
    "other library": (
        change(*SFT, "num_generations", to=8),
        "recipes.sft.brief.num_generations",
        "trl.SFTConfig",
    ),
    "option type": (
        change(*SFT, "learning_rate", to="fast"),
        "recipes.sft.brief.learning_rate",
        "a number",
    ),
    "option bool": (
        change(*SFT, "packing", to="yes"),
        "recipes.sft.brief.packing",
        "true or false",
    ),
    "not finite": (
        change(*SFT, "learning_rate", to=float("nan")),
        "recipes.sft.brief.learning_rate",
        "a number",
    ),
    "schedule": (
        change(*SFT, "lr_scheduler_type", to="consine"),
        "lr_scheduler_type",
        "Did you mean cosine?",
    ),
    "output_dir": (
        change(*SFT, "output_dir", to="x"),
        "recipes.sft.brief.output_dir",
        "sets itself",
    ),
    "save": (change(*SFT, "save_steps", to=5), "recipes.sft.brief.save_steps", "sets itself"),
    "sft seed": (change(*SFT, "seed", to=5), "recipes.sft.brief.seed", "`seeds`"),
    "sft length": (change(*SFT, "num_train_epochs", to=5), "brief.num_train_epochs", "`epochs`"),
    "cpt length": (change(*CPT, "num_train_epochs", to=0), "bio.num_train_epochs", "> 0"),
    "warmup_ratio": (
        change(*SFT, "warmup_ratio", to=0.1),
        "recipes.sft.brief.warmup_ratio",
        "warmup_steps",
    ),
    "descending": (change(*SFT, "epochs", to=[2, 1]), "recipes.sft.brief.epochs", "ascending"),
    "epoch twice": (change(*SFT, "epochs", to=[1, 1]), "recipes.sft.brief.epochs", "ascending"),
    "epoch zero": (change(*SFT, "epochs", to=[0, 1]), "recipes.sft.brief.epochs[0]", ">= 1"),
    "real epoch": (change(*SFT, "epochs", to=[1.5]), "recipes.sft.brief.epochs[0]", "an integer"),
    "no epochs": (change(*RL, to={}), "recipes.rl.grpo.epochs", "no such key"),
    "share of warm-up": (
        change(
            *SFT,
            to={
                "epochs": [1, 2, 4, 8],
                "lr_scheduler_type": "constant_with_warmup",
                "warmup_steps": 0.1,
            },
        ),
        "recipes.sft.brief.warmup_steps",
        "rung to rung",
    ),
    "no warm-up": (
        change(*SFT, to={"epochs": [1, 2, 4, 8], "lr_scheduler_type": "constant_with_warmup"}),
        "recipes.sft.brief.warmup_steps",
        "no such key",
    ),
    "useless warm-up": (
        change(*SFT, "warmup_steps", to=5),
        "recipes.sft.brief.warmup_steps",
        "constant_with_warmup",
    ),
    "fraction": (change(*SFT, "fraction", to=1.5), "recipes.sft.brief.fraction", "<= 1"),
    "no fraction": (change(*SFT, "fraction", to=0), "recipes.sft.brief.fraction", "> 0"),
    "rank": (
        change(*SFT, "lora", to={"r": 0, "lora_alpha": 1}),
        "recipes.sft.brief.lora.r",
        ">= 1",
    ),
    "alpha": (
        change(*SFT, "lora", to={"r": 4, "lora_alpha": 1.5}),
        "brief.lora.lora_alpha",
        "an integer",
    ),
    "lora typo": (change(*SFT, "lora", to={"r": 4, "alpha": 8}), "brief.lora.alpha", "lora_alpha"),
    "deepspeed": (
        change(*SFT, "deepspeed", to="zero4"),
        "recipes.sft.brief.deepspeed",
        "Did you mean zero",
    ),
    "processes": (change(*SFT, "processes", to=0), "recipes.sft.brief.processes", ">= 1"),
    "nodes": (change(*SFT, "nodes", to=0), "recipes.sft.brief.nodes", ">= 1"),
    "nodes without ranks": (change(*SFT, "nodes", to=2), "recipes.sft.brief.nodes", "a divisor of processes (1"),
    "block": (change(*CPT, "block_size", to=1024), "recipes.cpt.bio.block_size", "at most 512"),
    "group of one": (
        change(*RL, "num_generations", to=1),
        "recipes.rl.grpo.num_generations",
        ">= 2",
    ),
    "batch": (
        change(*RL, "num_generations", to=3),
        "recipes.rl.grpo.num_generations",
        "divide the generation batch of 8",
    ),
    "generation batch": (
        change(*RL, "generation_batch_size", to=12),
        "grpo.generation_batch_size",
        "multiple",
    ),
    "both": (
        change(*RL, to={"epochs": [1], "generation_batch_size": 8, "steps_per_generation": 1}),
        "grpo.steps_per_generation",
        "one of the two",
    ),
    "reward": (
        change(*RL, "rewards", to={"corect": 1.0}),
        "rewards.corect",
        "Did you mean correct?",
    ),
    "no reward": (change(*RL, "rewards", to={"correct": 0}), "recipes.rl.grpo.rewards", "above 0"),
    "examples": (change(*RL, "examples", to=301), "recipes.rl.grpo.examples", "at most 300"),
    # lineages
    "no sft recipe": (
        change("lineages", 0, "sft", to=["breif"]),
        "lineages[0].sft[0]",
        "Did you mean brief?",
    ),
    "no cpt recipe": (
        change("lineages", 0, "cpt", to=["boi"]),
        "lineages[0].cpt[0]",
        "Did you mean bio?",
    ),
    "no rl recipe": (
        change(*START, "recipe", to="grop"),
        "lineages[0].rl[0].recipe",
        "Did you mean grpo?",
    ),
    "no task": (
        change("lineages", 0, "tasks", to=["cell-tpye"]),
        "lineages[0].tasks[0]",
        "cell-type",
    ),
    "no backbone": (
        change("lineages", 0, "backbones", to=["giga"]),
        "lineages[0].backbones[0]",
        "nano",
    ),
    "some": (change("lineages", 0, "tasks", to="some"), "lineages[0].tasks", "all, or a list"),
    "no rung": (
        change(*START, "from", to=[3]),
        "lineages[0].rl[0].from[0]",
        "rung of the SFT recipe brief",
    ),
    "no parent": (
        change("lineages", 0, to={"rl": [{"recipe": "grpo", "from": [1]}]}),
        "lineages[0].rl[0].from[0]",
        "a parent",
    ),
    "warm": (
        change(*START, "from", to=["colt"]),
        "lineages[0].rl[0].from[0]",
        "Did you mean cold?",
    ),
    "no start": (change(*START, to={"recipe": "grpo"}), "lineages[0].rl[0].from", "[cold]"),
    "no recipes": (change("recipes", to={}), "lineages[0].sft[0]", "none is"),
    # budgets
    "budget sum": (
        change(
            "lineages",
            0,
            to={
                "sft": ["brief"],
                "rl": [{"recipe": "grpo"}],
                "budget": {"epochs": 8, "split": [[4, 2]]},
            },
        ),
        "lineages[0].budget.split[0]",
        "4 + 2 = 6",
    ),
    "budget rung": (
        change(
            "lineages",
            0,
            to={
                "sft": ["brief"],
                "rl": [{"recipe": "grpo"}],
                "budget": {"epochs": 8, "split": [[5, 3]]},
            },
        ),
        "lineages[0].budget.split[0][0]",
        "a rung of sft recipe brief",
    ),
    "budget pair": (
        change(
            "lineages",
            0,
            to={
                "sft": ["brief"],
                "rl": [{"recipe": "grpo"}],
                "budget": {"epochs": 8, "split": [[8]]},
            },
        ),
        "lineages[0].budget.split[0]",
        "at least 2",
    ),
    "budget without rl": (
        change("lineages", 0, to={"sft": ["brief"], "budget": {"epochs": 8, "split": [[8, 0]]}}),
        "lineages[0].rl",
        "share the budget",
    ),
    "budget and from": (
        change("lineages", 0, "budget", to={"epochs": 8, "split": [[8, 0]]}),
        "lineages[0].rl[0].from",
        "beside budget",
    ),
    # the rest
    "evaluation": (
        change("evaluation", to={"batch": 3}),
        "evaluation.batch",
        "Did you mean batch_size?",
    ),
    "resources": (
        change("resources", to={"sft": {"gpus": 1}}),
        "resources.sft.gpus",
        "Did you mean gpu?",
    ),
    "job": (change("resources", to={"train": {"gpu": 1}}), "resources.train", "an unknown key"),
}


@pytest.mark.parametrize(("breaking", "key", "reason"), BROKEN.values(), ids=BROKEN)
def test_broken_config_is_refused_with_file_key_and_reason(breaking, key, reason):
    given = small()
    breaking(given)
    message = refusal(lambda: study.load(given, "my.yaml"))
    entries = [line for line in message.splitlines() if line.startswith("my.yaml: ")]
    named = [line for line in entries if key in line.split(": ")[1]]
    assert any(reason in line for line in named), message


def test_nodes_of_a_stage_share_its_ranks_and_gpus_evenly():
    given = small()
    change(*SFT, "processes", to=4)(given)
    change(*SFT, "nodes", to=2)(given)
    change("resources", to={"sft": {"gpu": 3}})(given)
    message = refusal(lambda: study.load(given, "my.yaml"))
    assert message.startswith(
        "my.yaml: recipes.sft.brief.nodes: found the number 2; expected a divisor of resources.sft.gpu"
    )
    given["resources"]["sft"]["gpu"] = 4
    assert study.load(given).recipe("sft", "brief")["nodes"] == 2


def test_nodes_and_attempts_change_what_a_job_asks_for_and_not_its_recipe():
    given = small()
    change(*SFT, "processes", to=2)(given)
    one = study.load(given)
    change(*SFT, "nodes", to=2)(given)
    two = study.load(given)
    model = next(model for model in one.models if model.kind == "sft" and model.recipe == "brief")
    assert one.stage(model) == two.stage(model)
    asked = [one.resources("sft", attempt) for attempt in (1, 2, 3)]
    assert [(each["mem_mb"], each["runtime"]) for each in asked] == [(3000, 60), (4500, 90), (6000, 120)]
    assert len({(each["threads"], each["gpu"]) for each in asked}) == 1


ESM = ("encoders", "nano-esm")
HUB = ("encoders", "esm2")
DONOR = ("tasks", "splice-donor")

BROKEN_FEATURES = {
    # encoders
    "name": (change("encoders", "a/b", to={"pretrained": "x"}), "encoders.a/b", "lower-case"),
    "reserved": (change("encoders", "eval", to={"pretrained": "x"}), "encoders.eval", "another name"),
    "two kinds": (change(*ESM, "pretrained", to="x"), "encoders.nano-esm", "both architecture"),
    "no kind": (change(*ESM, to={"layer": 1}), "encoders.nano-esm", "neither architecture"),
    "no training": (lambda given: given["encoders"]["nano-esm"].pop("training"), "nano-esm.training", "to be given"),
    "training of a pretrained": (change(*HUB, "training", to={"corpora": ["rna"]}), "esm2.training", "made here"),
    "dtype of one made here": (change(*ESM, "dtype", to="float16"), "encoders.nano-esm.dtype", "beside architecture"),
    "package of one made here": (change(*ESM, "package", to="esm"), "encoders.nano-esm.package", "of pretrained"),
    "model type": (change(*ESM, "architecture", "model_type", to="esn"), "architecture.model_type", "esm"),
    "width": (change(*ESM, "architecture", "hidden_sise", to=8), "architecture.hidden_sise", "hidden_size"),
    "folding": (change(*ESM, "architecture", "is_folding_model", to=True), "is_folding_model", "an unknown key"),
    "vocabulary": (change(*ESM, "architecture", "vocab_size", to=9), "architecture.vocab_size", "an unknown key"),
    "positions": (
        change(*ESM, "architecture", "position_embedding_type", to="rotari"),
        "position_embedding_type",
        "Did you mean rotary?",
    ),
    "no corpora": (change(*ESM, "training", to={}), "nano-esm.training.corpora", "no such key"),
    "unknown corpus": (change(*ESM, "training", "corpora", to=["rnaa"]), "training.corpora[0]", "Did you mean rna?"),
    "text": (change(*ESM, "training", "corpora", to=["rna", "text"]), "training.corpora[1]", "corpus of sequences"),
    "masks": (change(*ESM, "training", "mlm_probability", to=1), "training.mlm_probability", "< 1"),
    "block": (change(*ESM, "training", "block_size", to=0), "training.block_size", ">= 1"),
    "length": (change(*ESM, "training", "num_train_epochs", to=0), "training.num_train_epochs", "> 0"),
    "option": (
        change(*ESM, "training", "learning_rat", to=1.0),
        "training.learning_rat",
        "Did you mean learning_rate?",
    ),
    "output_dir": (change(*ESM, "training", "output_dir", to="x"), "training.output_dir", "sets itself"),
    "deepspeed": (change(*ESM, "training", "deepspeed", to="zero2"), "training.deepspeed", "one process"),
    "package": (change(*HUB, "package", to="evo"), "encoders.esm2.package", "Did you mean evo2?"),
    "remote code": (change(*HUB, "trust_remote_code", to=True), "encoders.esm2.revision", "commit"),
    "layer": (change(*ESM, "layer", to=5), "encoders.nano-esm.layer", "0 (embeddings) to 4"),
    "layer from the end": (change(*ESM, "layer", to=-6), "encoders.nano-esm.layer", "to -5"),
    "real layer": (change(*ESM, "layer", to=1.0), "encoders.nano-esm.layer", "an integer or a text"),
    "pool": (change(*ESM, "pool", to=0), "encoders.nano-esm.pool", ">= 1"),
    "flank": (change(*ESM, "flank", to=0), "encoders.nano-esm.flank", ">= 1"),
    "small letter": (change(*ESM, "letters", to={"u": "T"}), "encoders.nano-esm.letters.u", "one upper-case letter"),
    "letters": (change(*ESM, "letters", to={"U": "TT"}), "encoders.nano-esm.letters.U", "one upper-case letter"),
    "storage": (change(*ESM, "storage", to="fp16"), "encoders.nano-esm.storage", "float16"),
    "trained": (change(*ESM, "trained", to=True), "encoders.nano-esm.trained", "bank: false"),
    # forms of tasks
    "form": (change(*DONOR, "sequences", to="feature"), "splice-donor.sequences", "tokens, features or both"),
    "forms": (change(*DONOR, "sequences", to=["feature"]), "splice-donor.sequences[0]", "Did you mean features?"),
    "no form": (change(*DONOR, "sequences", to=[]), "splice-donor.sequences", "at least 1 entry"),
    "form twice": (change(*DONOR, "sequences", to=["both", "both"]), "splice-donor.sequences", "no entry twice"),
    "no encoder": (change(*DONOR, "encoder", to=None), "splice-donor.encoder", "a name of `encoders` for features"),
    "unknown encoder": (change(*DONOR, "encoder", to="esm3"), "splice-donor.encoder", "Did you mean esm2?"),
    "no residues": (
        change("tasks", "cell-type", to={"train": 300, "sequences": "both", "encoder": "esm2"}),
        "tasks.cell-type.sequences",
        "nothing to read",
    ),
    # bridges
    "bridge": (change(*SFT, "bridge", to="lineer"), "recipes.sft.brief.bridge", "Did you mean linear?"),
    "bridge of cpt": (change(*CPT, "bridge", to="mlp"), "recipes.cpt.bio.bridge", "an unknown key"),
    "train_bridge of sft": (change(*SFT, "train_bridge", to=True), "brief.train_bridge", "an unknown key"),
    # lineages
    "form of a lineage": (change("lineages", 0, "sequences", to=["token"]), "sequences[0]", "Did you mean tokens?"),
    "word of a lineage": (change("lineages", 0, "sequences", to="tokens"), "lineages[0].sequences", "all, or a list"),
    "form of no task": (
        change("lineages", 0, to={"tasks": ["splice-donor"], "sequences": ["tokens", "both"]}),
        "lineages[0].sequences[1]",
        "tasks.splice-donor.sequences lists (tokens, features)",
    ),
    "form of one task": (change("lineages", 0, "sequences", to=["features"]), "sequences[0]", "tasks.cell-type"),
    # reinforcement learning with features
    "vllm": (change(*RL, "use_vllm", to=True), "recipes.rl.grpo.use_vllm", "no bridge"),
    "penalty": (change(*RL, "repetition_penalty", to=1.1), "recipes.rl.grpo.repetition_penalty", "1.0"),
    "reference": (change(*RL, "beta", to=0.01), "recipes.rl.grpo.beta", "without the bridge"),
    "cold bridge": (
        lambda given: [change(*START, "from", to=["cold"])(given), change(*RL, "train_bridge", to=False)(given)],
        "recipes.rl.grpo.train_bridge",
        "no bridge yet",
    ),
    "cold bridge of a budget": (
        lambda given: [
            change(
                "lineages",
                0,
                to={
                    "sft": ["brief"],
                    "rl": [{"recipe": "grpo"}],
                    "budget": {"epochs": 8, "split": [[8, 0], [0, 8]]},
                },
            )(given),
            change(*RL, "train_bridge", to=False)(given),
        ],
        "recipes.rl.grpo.train_bridge",
        "no bridge yet",
    ),
}


@pytest.mark.parametrize(("breaking", "key", "reason"), BROKEN_FEATURES.values(), ids=BROKEN_FEATURES)
def test_broken_encoder_or_form_is_refused_with_file_key_and_reason(breaking, key, reason):
    given = featured()
    breaking(given)
    message = refusal(lambda: study.load(given, "my.yaml"))
    entries = [line for line in message.splitlines() if line.startswith("my.yaml: ")]
    named = [line for line in entries if key in line.split(": ")[1]]
    assert any(reason in line for line in named), message


KEGG = {"adapter": "kegg", "hub": "wanglab/kegg", "validation": 100}
CELLS = {
    "adapter": "cells",
    "file": "data/blood.h5ad",
    "options": {"label": "cell_type", "group": "donor"},
    "ood": ["donor-3"],
}


def published(**changes: Any) -> Callable[[Config], None]:
    """A task of the adapter kegg, with changes; None removes a key."""
    return change("tasks", "mine", to={key: value for key, value in (KEGG | changes).items() if value is not None})


def cells(**changes: Any) -> Callable[[Config], None]:
    """A task of the adapter cells, with changes; None removes a key."""
    return change("tasks", "mine", to={key: value for key, value in (CELLS | changes).items() if value is not None})


def chosen(split: Any, **changes: Any) -> Callable[[Config], None]:
    """A table of the user's own whose OOD rows `split` chooses."""
    columns = {"id": "variant", "sequence": "seq", "label": "class"}
    return own(**{"split": split, "ood": None, "columns": columns} | changes)


def asked(prompt: Any, **changes: Any) -> Callable[[Config], None]:
    """A table of the user's own with a template of the prompt."""
    return own(**{"prompt": prompt, "question": None} | changes)


BROKEN_TASKS = {
    # adapters
    "adapter": (published(adapter="keg"), "tasks.mine.adapter", "Did you mean kegg?"),
    "adapter of a number": (published(adapter=3), "tasks.mine.adapter", "a text"),
    "adapter under a built-in name": (change("tasks", "cell-type", to=KEGG), "tasks.cell-type", "another name"),
    "no data": (published(hub=None), "tasks.mine", "neither file nor hub"),
    "two sources": (published(file="a.csv"), "tasks.mine", "both file and hub"),
    "two files of kegg": (published(hub=None, file=["a.csv", "b.csv"]), "tasks.mine.file", "found 2 files"),
    "file twice": (published(hub=None, file=["a.csv", "a.csv", "b.csv"]), "tasks.mine.file", "no entry twice"),
    "no file": (published(hub=None, file=[]), "tasks.mine.file", "at least 1"),
    "file in braces": (published(hub=None, file=["a.csv", "{b}.csv", "c.csv"]), "tasks.mine.file[1]", "braces"),
    "revision of a file": (published(hub=None, file="a.csv", revision="v1"), "tasks.mine.revision", "without hub"),
    "labels of an adapter": (published(labels=["a", "b"]), "tasks.mine.labels", "knows its data"),
    "question of an adapter": (published(question="?"), "tasks.mine.question", "knows its data"),
    "split of data with splits": (published(split={"by": "group", "ood": 0.2}), "tasks.mine.split", "knows its data"),
    "groups of data with splits": (published(ood=["a"]), "tasks.mine.ood", "come with splits"),
    "word for a size": (published(train="most"), "tasks.mine.train", "a number of rows, or all"),
    "all of validation": (published(validation="all"), "tasks.mine.validation", "an integer"),
    "unknown option": (published(options={"flanks": 10}), "tasks.mine.options.flanks", "Did you mean flank?"),
    "option of the wrong type": (published(options={"flank": "wide"}), "tasks.mine.options.flank", "an integer"),
    "real option": (published(options={"flank": 2.5}), "tasks.mine.options.flank", "an integer"),
    "option too small": (published(options={"flank": 0}), "tasks.mine.options.flank", ">= 1"),
    "options as a list": (published(options=["flank"]), "tasks.mine.options", "a mapping"),
    "missing option": (cells(options={"label": "a"}), "tasks.mine.options.group", "it to be given: column of `obs`"),
    "empty option": (cells(options={"label": "", "group": "b"}), "tasks.mine.options.label", "not empty"),
    "hub of cells": (cells(hub="a/b"), "tasks.mine.hub", "no such key"),
    "cells without a file": (cells(file=None), "tasks.mine.file", "it to be given"),
    "cells without groups": (cells(ood=None), "tasks.mine.ood", "list of groups"),
    "cells with a number": (cells(ood=100), "tasks.mine.ood", "list of groups"),
    "column of an adapter": (
        cells(ood=None, split={"by": "group", "column": "donor", "ood": 0.2}),
        "tasks.mine.split.column",
        "no such key",
    ),
    "features of cells": (cells(sequences="features", encoder="esm2"), "tasks.mine.sequences", "nothing to read"),
    "ontology in braces": (
        change(
            "tasks", "mine", to={"adapter": "go-terms", "file": "a.csv", "ood": ["x"], "options": {"ontology": "{}"}}
        ),
        "tasks.mine.options.ontology",
        "braces",
    ),
    "hub of a table": (own(hub="a/b"), "tasks.mine.hub", "a key of adapters"),
    "options of a built-in task": (change("tasks", "cell-type", to={"options": {}}), "cell-type.options", "adapters"),
    "split of a built-in task": (
        change("tasks", "cell-type", to={"split": {"by": "time"}}),
        "cell-type.split",
        "built in",
    ),
    "all of a built-in task": (change("tasks", "cell-type", to={"ood": "all"}), "cell-type.ood", "a number of rows"),
    "two tables": (own(file=["a.csv", "b.csv"]), "tasks.mine.file", "one table"),
    # the way OOD rows are chosen
    "way": (chosen({"by": "family"}), "tasks.mine.split.by", "one of group, similarity, time"),
    "no way": (chosen({"ood": 0.2}), "tasks.mine.split.by", "it to be given"),
    "unknown key of a split": (chosen({"by": "group", "colum": "a"}), "tasks.mine.split.colum", "Did you mean column?"),
    "no column": (chosen({"by": "group", "ood": 0.2}), "tasks.mine.split.column", "with `by: group`"),
    "no share": (chosen({"by": "group", "column": "a"}), "tasks.mine.split.ood", "the share of the rows"),
    "whole share": (chosen({"by": "group", "column": "a", "ood": 1}), "tasks.mine.split.ood", "< 1"),
    "no threshold": (chosen({"by": "similarity", "ood": 0.2}), "tasks.mine.split.threshold", "it to be given"),
    "threshold": (chosen({"by": "similarity", "ood": 0.2, "threshold": 40}), "tasks.mine.split.threshold", "<= 1"),
    "column of similarity": (
        chosen({"by": "similarity", "ood": 0.2, "threshold": 0.4, "column": "a"}),
        "tasks.mine.split.column",
        "no such key",
    ),
    "no time": (chosen({"by": "time", "column": "a"}), "tasks.mine.split", "neither ood nor after"),
    "two times": (
        chosen({"by": "time", "column": "a", "ood": 0.2, "after": "2020-01-01"}),
        "tasks.mine.split",
        "both ood and after",
    ),
    "no date": (chosen({"by": "time", "column": "a", "after": "soon"}), "tasks.mine.split.after", "ISO 8601"),
    "date of groups": (
        chosen({"by": "group", "column": "a", "ood": 0.2, "after": "2020-01-01"}),
        "tasks.mine.split.after",
        "no such key",
    ),
    "groups beside split": (
        chosen({"by": "group", "column": "a", "ood": 0.2}, ood=["kinase"]),
        "tasks.mine.ood",
        "`split` says what is held out",
    ),
    "group column beside split": (
        chosen({"by": "group", "column": "a", "ood": 0.2}, columns=OWN_TABLE["columns"]),
        "tasks.mine.columns.group",
        "beside split",
    ),
    "all of id": (chosen({"by": "group", "column": "a", "ood": 0.2}, id="all"), "tasks.mine.id", "come with splits"),
    # templates
    "open brace": (asked("{sequence} {"), "tasks.mine.prompt", "cannot be read"),
    "no sequence": (asked("Is {variant} active?"), "tasks.mine.prompt", "{sequence} 0 times"),
    "sequence twice": (asked("{sequence} {sequence}"), "tasks.mine.prompt", "{sequence} 2 times"),
    "field with a format": (asked("{sequence} {a:>9}"), "tasks.mine.prompt", "more than a name"),
    "field with an attribute": (asked("{sequence} {a.b}"), "tasks.mine.prompt", "more than a name"),
    "field without a name": (asked("{sequence} {}"), "tasks.mine.prompt", "more than a name"),
    "field of a number": (asked("{sequence} {0}"), "tasks.mine.prompt", "more than a name"),
    "answer in the prompt": (asked("{sequence} {class}"), "tasks.mine.prompt", "column of the label"),
    "question beside prompt": (asked("{sequence}", question="Active?"), "tasks.mine.prompt", "one of the two"),
}


@pytest.mark.parametrize(("breaking", "key", "reason"), BROKEN_TASKS.values(), ids=BROKEN_TASKS)
def test_broken_data_of_a_task_are_refused_with_file_key_and_reason(breaking, key, reason):
    given = featured()
    breaking(given)
    message = refusal(lambda: study.load(given, "my.yaml"))
    entries = [line for line in message.splitlines() if line.startswith("my.yaml: ")]
    named = [line for line in entries if line.split(": ")[1].endswith(key)]
    assert any(reason in line for line in named), message


def adapted() -> Config:
    """`featured` with a task of each kind of data."""
    given = featured()
    go = {"adapter": "go-terms", "file": ["a.csv", "b.csv"], "ood": ["mouse"], "options": {"ontology": "go.obo"}}
    for breaking in (
        change("tasks", "pathways", to=KEGG | {"revision": "main", "train": 50}),
        change("tasks", "files", to={"adapter": "kegg", "file": ["a.csv", "b.csv", "c.csv"], "options": {"flank": 9}}),
        change("tasks", "blood", to=copy.deepcopy(CELLS)),
        change("tasks", "donors", to=CELLS | {"ood": 50, "split": {"by": "group", "ood": 0.2}}),
        change("tasks", "functions", to=go | {"sequences": "both", "encoder": "esm2"}),
        chosen({"by": "similarity", "ood": 0.2, "threshold": 0.4}),
    ):
        breaking(given)
    mine = given["tasks"]["mine"]
    given["tasks"]["dated"] = mine | {"split": {"by": "time", "column": "day", "after": "2020-01-31"}, "ood": 30}
    asked_about = {key: value for key, value in mine.items() if key != "question"}
    given["tasks"]["asked"] = asked_about | {"prompt": "Is {variant} active? {sequence} Say {options}."}
    return given


def test_tasks_of_every_kind_of_data_are_valid_and_filled_in():
    loaded = study.load(adapted())
    found = {name: loaded.spec(name) for name in loaded.tasks}
    assert {name: found[name]["ood"] for name in ("pathways", "blood", "donors", "mine", "dated")} == {
        "pathways": "all",
        "blood": ["donor-3"],
        "donors": 50,
        "mine": "all",
        "dated": 30,
    }
    assert found["pathways"]["options"] == {"flank": 1024}
    assert found["files"]["options"] == {"flank": 9}
    assert found["blood"]["options"]["genes"] == 100
    assert (found["pathways"]["train"], found["files"]["train"], found["blood"]["train"]) == (50, "all", 1000)
    assert loaded.sources("pathways") == []
    assert loaded.sources("files") == ["a.csv", "b.csv", "c.csv"]
    assert loaded.sources("functions") == ["a.csv", "b.csv", "go.obo"]
    assert loaded.sources("mine") == ["data/my-assay.csv"]
    assert loaded.sources("splice-donor") == ["resources/tasks/splice-donor.parquet"]
    assert study.load(json.loads(json.dumps(loaded.config))) == loaded


def test_date_of_a_split_needs_no_quotes(tmp_path):
    given = small()
    chosen({"by": "time", "column": "day", "after": "@"})(given)
    text = yaml.safe_dump(given).replace("'@'", "2020-01-31")
    spec = study.read(write(tmp_path, text)).spec("mine")
    assert json.loads(json.dumps(spec))["split"]["after"] == "2020-01-31"


def test_weights_of_terms_are_a_file_or_a_word():
    given = adapted()
    for weights, files in (("train", []), ("ia.txt", ["ia.txt"]), (None, [])):
        given["tasks"]["functions"]["options"]["weights"] = weights
        assert study.load(given).sources("functions") == ["a.csv", "b.csv", "go.obo", *files]


def test_every_adapter_says_what_its_options_are_and_has_defaults_of_their_type():
    for adapter in catalog.ADAPTERS.values():
        for option in adapter.options.values():
            assert option.meaning
            assert option.default is catalog.REQUIRED or config._fits(option.kind, option.default)


def test_rl_without_features_may_do_what_a_bridge_forbids():
    given = featured()
    given["recipes"]["rl"]["grpo"] |= {"use_vllm": True, "repetition_penalty": 1.1, "beta": 0.01, "train_bridge": False}
    given["lineages"][0] |= {"sequences": ["tokens"], "rl": [{"recipe": "grpo", "from": [1, "cold"]}]}
    study.load(given)


def test_rl_with_features_may_have_a_reference_model_under_lora_and_a_frozen_bridge_after_sft():
    given = featured()
    given["recipes"]["rl"]["grpo"] |= {"beta": 0.01, "lora": {"r": 4, "lora_alpha": 8}, "train_bridge": False}
    study.load(given)


def test_encoder_may_be_trained_in_the_step_and_run_pinned_code():
    given = featured()
    given["encoders"]["esm2"] |= {"trained": True, "trust_remote_code": True, "revision": "0a1b2c3"}
    given["encoders"]["nano-esm"]["layer"] = "encoder.layer.1.output"
    assert study.load(given).reading("esm2")["trained"] is True


def test_task_with_an_encoder_that_no_form_asks_for_is_valid():
    """So that `sequences` is the one key that switches the form."""
    given = featured()
    given["tasks"]["splice-donor"]["sequences"] = "tokens"
    loaded = study.load(given)
    assert loaded.models == study.load(small()).models


def test_all_problems_are_reported_at_once():
    given = small()
    for breaking, _, _ in (BROKEN["unknown key"], BROKEN["option typo"], BROKEN["no rung"]):
        breaking(given)
    message = refusal(lambda: study.load(given, "my.yaml"))
    assert message.startswith("3 problems in my.yaml\n")
    assert len(message.splitlines()) == 4


SCRAPS = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats(allow_nan=True) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def places(value: Any, key: tuple = ()) -> list[tuple]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(*key, name) for name, _ in entries] + [
        place for name, entry in entries for place in places(entry, (*key, name))
    ]


@settings(max_examples=300, deadline=None)
@given(place=st.sampled_from(places(adapted())), scrap=SCRAPS)
def test_nonsense_anywhere_is_a_user_error_and_never_a_crash(place, scrap):
    given = adapted()
    change(*place, to=scrap)(given)
    with contextlib.suppress(UserError):
        study.load(given)


# --- Any valid study ---

NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,5}", fullmatch=True).filter(lambda name: name not in config.RESERVED)
RUNGS = st.lists(st.integers(1, 32), min_size=1, max_size=4, unique=True).map(sorted)
SCHEDULES = st.sampled_from(["constant", "cosine", "linear", "warmup_stable_decay"])


@st.composite
def configs(draw: st.DrawFn) -> Config:
    given = featured()
    forms = draw(st.lists(st.sampled_from(FORMS), min_size=1, unique=True))
    given["tasks"]["splice-donor"] |= {"sequences": forms, "encoder": draw(st.sampled_from(["nano-esm", "esm2"]))}
    given["seeds"] = draw(st.lists(st.integers(0, 99), min_size=1, max_size=2, unique=True))
    backbones = draw(st.lists(NAMES, min_size=1, max_size=2, unique=True))
    given["backbones"] = {name: copy.deepcopy(given["backbones"]["nano"]) for name in backbones}
    for kind in ("sft", "rl"):
        names = draw(st.lists(NAMES, min_size=1, max_size=2, unique=True))
        given["recipes"][kind] = {name: {"epochs": draw(RUNGS), "lr_scheduler_type": draw(SCHEDULES)} for name in names}
    sft, rl = given["recipes"]["sft"], given["recipes"]["rl"]

    def lineage() -> Config:
        chosen = draw(st.lists(st.sampled_from(sorted(sft)), max_size=2, unique=True))
        common = set.intersection(*(set(sft[name]["epochs"]) for name in chosen)) if chosen else set()
        starts = st.sampled_from(["cold", *sorted(common)])
        entry: Config = {
            "cpt": draw(st.sampled_from([["none"], ["bio"], ["none", "bio"]])),
            "sft": chosen,
            "rl": [
                {
                    "recipe": name,
                    "from": draw(st.lists(starts, min_size=1, unique=True, max_size=3)),
                }
                for name in draw(st.lists(st.sampled_from(sorted(rl)), max_size=2))
            ],
        }
        if draw(st.booleans()):
            entry["tasks"] = ["cell-type"]
        elif draw(st.booleans()):
            picked = st.lists(st.sampled_from(forms), min_size=1, unique=True)
            entry |= {"tasks": ["splice-donor"], "sequences": draw(picked)}
        return entry

    given["lineages"] = [lineage() for _ in range(draw(st.integers(1, 3)))]
    return given


@settings(max_examples=100, deadline=None)
@given(configs())
def test_any_study_has_unique_paths_and_parents_come_first(given):
    loaded = study.load(given)
    seen: set[str] = set()
    for model in loaded.models:
        assert model.path not in seen
        assert model.parent is None or model.parent in seen
        assert model.previous is None or model.previous in seen
        if model.kind == "rl" and model.sft:
            assert model.path.startswith(f"{model.parent}/")
        if model.previous:
            before = loaded.model(model.previous)
            assert (before.parent, before.recipe) == (model.parent, model.recipe)
            assert before.epochs < model.epochs
        for origin in (model.parent, model.previous):
            if origin and loaded.model(origin).task:
                before = loaded.model(origin)
                assert (before.sequences, before.encoder) == (model.sequences, model.encoder)
        assert (model.encoder is None) == (model.sequences == "tokens")
        assert loaded.bank(model) is None or (model.encoder, model.task) in loaded.banks
        seen.add(model.path)
    evaluations = [path for path, _, _ in loaded.evaluations()]
    assert len(evaluations) == len(set(evaluations))
    assert {path for _, path, _ in loaded.evaluations()} == seen
    assert study.load(loaded.config) == loaded


# --- Purity, and agreement with the libraries and the prose ---


def test_reading_a_study_imports_nothing_heavy():
    script = (
        "import sys; from pathlib import Path; from cisterna import study;"
        f"study.read(Path({str(DEFAULT)!r}));"
        "heavy = {'torch', 'transformers', 'trl', 'peft', 'pandas', 'numpy', 'pyarrow'};"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_options_are_those_of_the_installed_libraries():
    spec = importlib.util.spec_from_file_location("build", ROOT / "scripts" / "build_options.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    message = "run python scripts/build_options.py"
    assert json.loads(config.OPTIONS.read_text()) == json.loads(build.build()), message


def test_refused_options_exist_in_a_library():
    known = {name for options in config._options()["options"].values() for name in options}
    for pattern in config.REFUSED:
        assert any(re.fullmatch(pattern.replace("*", ".*"), name) for name in known), pattern


def test_rewards_of_the_schema_are_those_of_the_code():
    recipes = config._schema()["properties"]["recipes"]["properties"]
    names = recipes["rl"]["additionalProperties"]["properties"]["rewards"]["properties"]
    assert set(names) == set(rewards.REWARDS)


def schema_keys(schema: Config, key: str = "") -> set[str]:
    if "$ref" in schema:
        schema = config._schema()["$defs"][schema["$ref"].rpartition("/")[2]]
    keys = {key} if key else set()
    for name, entry in schema.get("properties", {}).items():
        keys |= schema_keys(entry, f"{key}.{name}".strip("."))
    if isinstance(schema.get("additionalProperties"), dict):
        keys |= schema_keys(schema["additionalProperties"], f"{key}.NAME") - {f"{key}.NAME"}
    if isinstance(schema.get("items"), dict):
        keys |= schema_keys(schema["items"], f"{key}[]") - {f"{key}[]"}
    return keys


def documented() -> dict[str, str]:
    """Key -> default, as the tables of config/README.md have them."""
    text = (ROOT / "config" / "README.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \|[^|]*\|([^|]*)\|", text, flags=re.MULTILINE)
    return {key: default.strip() for key, default in rows}


def test_readme_has_every_key_and_no_other():
    keys = {re.sub(r"^(resources)\.[a-z]+", r"\1.JOB", key) for key in schema_keys(config._schema())}
    keys = {re.sub(r"\.(cpt|rl)(\.NAME\.lora)\..*", r".\1\2", key) for key in keys}  # as for sft
    assert set(documented()) - {"num_train_epochs"} >= keys - {"resources.JOB"}
    assert {key for key in documented() if "." in key} <= keys


def test_readme_has_every_option_of_every_adapter_with_its_default():
    text = (ROOT / "config" / "README.md").read_text()
    rows = re.findall(r"^\| ([a-z-]+) \| `([a-z]+)` \| ([^|]*) \|", text, flags=re.MULTILINE)
    words = {catalog.REQUIRED: "required", None: "null"}
    assert rows == [
        (name, option, words.get(entry.default, str(entry.default)))
        for name, adapter in catalog.ADAPTERS.items()
        for option, entry in adapter.options.items()
    ]


def test_readme_has_the_true_defaults():
    given = small()
    given["backbones"]["hub"] = {"pretrained": "x"}
    given["corpora"]["rna"] = {"file": "x", "modality": "rna"}
    given["encoders"] = {
        "hub": {"pretrained": "x"},
        "nano": {"architecture": {"model_type": "esm"}, "training": {"corpora": ["rna"]}},
    }
    given["recipes"]["sft"]["brief"]["lora"] = {"r": 1, "lora_alpha": 1}
    given["lineages"] = [{}]
    filled = study.load(given).config
    first = {"tasks.NAME": "splice-donor", "recipes.cpt.NAME": "bio", "recipes.sft.NAME": "brief"}
    first |= {"recipes.rl.NAME": "grpo", "resources.JOB": "sft"}
    checked = 0
    for key, default in documented().items():
        if not re.fullmatch(r"`[^`]*`", default) or default == "`all`":
            continue
        if key == "encoders":
            assert study.load(small()).config["encoders"] == yaml.safe_load(default[1:-1])
            continue
        if key in ("corpora", "recipes", "recipes.cpt", "recipes.sft", "recipes.rl"):
            assert set(yaml.safe_load(default[1:-1])) <= set(filled["recipes"])
            continue
        place = key.replace("[]", ".0")
        if key == "recipes.sft.NAME.lora":
            place = "recipes.sft.long.lora"
        for pattern, name in first.items():
            place = place.replace(pattern, pattern.rpartition(".")[0] + f".{name}")
        hub = key in ("backbones.NAME.revision", "backbones.NAME.dtype")
        place = place.replace("backbones.NAME", f"backbones.{'hub' if hub else 'nano'}")
        hub = key.rpartition(".")[2] in config.DEFAULTS["encoder pretrained"]
        place = place.replace("encoders.NAME", f"encoders.{'hub' if hub else 'nano'}")
        value: Any = filled
        for part in place.split("."):
            value = value[int(part)] if isinstance(value, list) else value[part]
        assert value == yaml.safe_load(default[1:-1]), key
        checked += 1
    assert checked >= 50
