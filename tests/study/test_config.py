"""What a config must not say, and where the error points: file, line and key. The prose is in problems.txt."""

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cisterna import study
from cisterna.errors import UserError
from cisterna.study import config as configs
from cisterna.study.config import trainer_options
from cisterna.tasks import catalog
from studies import OWN_TABLE, Config, adapted, featured, small

HERE = Path(__file__).parent
GONE = "(removed)"  # the value of a key that is removed
PUBLISHED = {"adapter": "kegg", "hub": "wanglab/kegg", "validation": 100}
CELLS = {"adapter": "cells", "file": "blood.h5ad", "options": {"label": "type", "group": "donor"}, "ood": ["donor-3"]}
BUDGET = {"sft": ["brief"], "rl": [{"recipe": "grpo"}], "budget": {"epochs": 8, "split": [[8, 0]]}}
BY_GROUP = {"by": "group", "column": "kind", "ood": 0.2}


def put(config: Any, key: tuple[Any, ...], value: Any) -> None:
    """Change one value; mappings on the way to it are made."""
    for part in key[:-1]:
        config = config.setdefault(part, {}) if isinstance(config, dict) else config[part]
    if value is GONE:
        del config[key[-1]]
    else:
        config[key[-1]] = value


def keys(text: str) -> tuple[Any, ...]:
    return tuple(int(part) if part.isdigit() else part for part in text.split())


def problems(config: Config) -> dict[str, str]:
    """Key -> message of every problem; empty if the config is valid."""
    try:
        study.load(config, "my.yaml")
    except UserError as error:
        lines = [line for line in str(error).splitlines() if line.startswith("my.yaml: ")]
        return {key: message for key, _, message in (line[9:].partition(": ") for line in lines)}
    return {}


def table(**changes: Any) -> Config:
    return {key: value for key, value in (OWN_TABLE | changes).items() if value is not GONE}


def split_table(split: Any, **changes: Any) -> Config:
    columns = {"id": "variant", "sequence": "seq", "label": "class"}
    return table(**{"split": split, "ood": GONE, "columns": columns} | changes)


def prompted(prompt: str, **changes: Any) -> Config:
    return table(**{"prompt": prompt, "question": GONE} | changes)


def text(prompt: str, **changes: Any) -> Config:
    columns = {"id": "variant", "label": "class", "group": "family"}
    if not isinstance(changes.get("ood", []), list):
        del columns["group"]
    return prompted(**{"prompt": prompt, "modality": "text", "columns": columns} | changes)


def pair(prompt: str, position: Any = GONE, **changes: Any) -> Config:
    columns = OWN_TABLE["columns"] | {"sequence": {"one": "a", "two": "b"}, "position": position}
    return prompted(prompt, columns={role: name for role, name in columns.items() if name is not GONE}, **changes)


def published(**changes: Any) -> Config:
    return {key: value for key, value in (PUBLISHED | changes).items() if value is not GONE}


def cells(**changes: Any) -> Config:
    return {key: value for key, value in (CELLS | changes).items() if value is not GONE}


def proteins(**changes: Any) -> Config:
    return {"adapter": "go-terms", "file": "a.csv", "options": {"ontology": "go.obo"}} | changes


# One mistake a row, one for each rule: the key that is changed, and its value. The tables of config/README.md pin the
# types of all keys.
MISTAKES: list[tuple[str, Any]] = [
    # unknown and missing keys, empty sections, names
    ("colour", 1),
    ("tasks", GONE),
    ("tasks", {}),
    ("tasks splice-donor", None),
    ("study", 7),
    ("study", "a..b"),
    ("study", "a\n"),
    ("study", "a" * 65),
    ("tasks a/b", table()),
    ("backbones base", {"pretrained": "x"}),
    ("recipes cpt none", {"corpora": ["text"]}),
    ("recipes sft cold", {"epochs": [1]}),
    ("encoders eval", {"pretrained": "x"}),
    ("seeds", [1, 1]),
    ("seeds", [1.0]),
    # backbones
    ("backbones nano pretrained", "x"),
    ("backbones nano tokenizer", GONE),
    ("backbones nano tokenizer files", ["{a}.txt"]),
    ("backbones nano revision", "main"),
    ("backbones hub", {"pretrained": "https://me:secret@host/x"}),
    ("backbones hub", {"pretrained": "x", "chat_template_kwargs": {"enable_thinking": "False"}}),
    ("backbones nano architecture model_type", "qwen33"),
    ("backbones nano architecture hidden_sise", 8),
    ("backbones nano architecture hidden_size", "wide"),
    # encoders
    ("encoders nano-esm pretrained", "x"),
    ("encoders nano-esm architecture is_folding_model", True),
    ("encoders nano-esm architecture position_embedding_type", "rotari"),
    ("encoders nano-esm training corpora", ["rnaa"]),
    ("encoders nano-esm training corpora", ["rna", "text"]),
    ("encoders nano-esm training learning_rat", 1.0),
    ("encoders nano-esm training deepspeed", "zero2"),
    ("encoders esm2 trust_remote_code", True),
    ("encoders nano-esm layer", 5),
    ("encoders nano-esm layer", -6),
    ("encoders nano-esm layer", 1.0),
    ("encoders nano-esm letters", {"u": "T"}),
    ("encoders nano-esm trained", True),
    ("encoders given", {"features": "cells.h5ad", "layer": -1}),
    ("encoders given", {"features": "cells.h5ad", "bank": False}),
    ("encoders given", {"features": "cells.h5ad", "trained": True}),
    ("encoders given", {"features": "cells.h5ad", "flank": 10}),
    ("encoders given", {"features": [], "key": 1}),
    ("encoders given", {"features": "cells.h5ad", "pretrained": "x"}),
    ("encoders given", {"features": "cells.h5ad", "pool": 4}),
    ("encoders given", {"features": "cells.h5ad", "per": "cell"}),
    ("encoders given", {"pretrained": "tf_sapiens", "package": "transcriptformer", "layer": 3}),
    ("encoders nano-esm", {"pretrained": "tf_sapiens", "package": "transcriptformer"}),
    # corpora
    ("corpora text field", "body"),
    ("corpora book", {"file": "book.gbk.gz", "modality": "text"}),
    # built-in tasks
    ("tasks splice-donr", {}),
    ("tasks cell-type train", "most"),
    ("tasks cell-type ood", "all"),
    ("tasks cell-type split", {"by": "time"}),
    ("tasks cell-type", table()),
    # tables
    ("tasks mine", table(question=GONE)),
    ("tasks mine", table(ood=100)),
    ("tasks mine", table(columns={"id": "a", "sequence": "b", "label": "c"})),
    ("tasks mine", table(labels=["a"])),
    *(("tasks mine", table(labels=["a", label])) for label in (True, "b\nc", "<b", " b", "")),
    *(("tasks mine", table(thresholds=cuts)) for cuts in ([0.5, 1.0], ["high"], [])),
    ("tasks mine", table(labels=["a", "b", "c"], thresholds=[2, 1])),
    ("tasks mine", prompted("{sequence} {")),
    ("tasks mine", prompted("Is {variant} active?")),
    ("tasks mine", prompted("{sequence} {sequence}")),
    *(("tasks mine", prompted(f"{{sequence}} {field}")) for field in ("{a:>9}", "{a.b}", "{}", "{0}")),
    ("tasks mine", prompted("{sequence} {class}")),
    ("tasks mine", prompted("{sequence}", question="Active?")),
    # prompts without a sequence, or with several
    ("tasks mine", table(columns={"id": "a", "label": "c", "group": "d"})),
    ("tasks mine", table(modality="text")),
    ("tasks mine", table(modality="lipid")),
    ("tasks mine", table(modality={"sequence": "dna", "other": "dna"})),
    ("tasks mine", text("Which?")),
    ("tasks mine", text(GONE, question="Which?")),
    ("tasks mine", text("{gene}", sequences="features", encoder="esm2")),
    ("tasks mine", text("{gene}", conflicts="average")),
    ("tasks mine", text("{gene}", unusual_letters="mask")),
    ("tasks mine", text("{gene}", ood={"gene": []})),
    ("tasks mine", text("{gene}", ood={"gene": ["a"]}, columns={"id": "a", "label": "b", "group": "c"})),
    ("tasks mine", pair("{one}")),
    ("tasks mine", pair("{one} {two}", modality={"one": "dna"})),
    ("tasks mine", pair("{one} {two}", modality={"one": "dna", "three": "dna"})),
    ("tasks mine", pair("{one} {two}", sequences="both", encoder="esm2", modality={"one": "dna", "two": "rna"})),
    ("tasks mine", pair("{one} {two}", position="at")),
    # adapters
    ("tasks mine", published(adapter="keg")),
    ("tasks mine", published(hub=GONE)),
    ("tasks mine", published(file="a.csv")),
    ("tasks mine", published(hub=GONE, file=["a.csv", "b.csv"])),
    ("tasks mine", published(hub=GONE, file=["a.csv", "{b}.csv", "c.csv"])),
    ("tasks mine", published(hub=GONE, file="a.csv", revision="v1")),
    ("tasks mine", published(split={"by": "group", "ood": 0.2})),
    ("tasks mine", published(options={"flanks": 10})),
    *(("tasks mine", published(options={"flank": value})) for value in ("wide", 2.5)),
    ("tasks mine", published(options=["flank"])),
    ("tasks mine", published(options={"trim_ends": -1})),
    ("tasks mine", published(options={"target": "disease"})),
    ("tasks mine", published(adapter="variant-effect-non-snv", options={"target": "diseases"})),
    ("tasks mine", proteins(file=["a.csv", "b.csv"], ood=["mouse"])),
    ("tasks mine", proteins(file=["a.csv", "b.csv", "c.csv"], split={"by": "group", "ood": 0.2})),
    ("tasks mine", proteins(ood=[])),
    ("tasks mine", cells(options={"label": "a"})),
    ("tasks mine", cells(options={"label": "", "group": "b"})),
    ("tasks mine", cells(options={"label": "{}", "group": "b"})),
    ("tasks mine", cells(hub="a/b")),
    ("tasks mine", cells(file=GONE)),
    ("tasks mine", cells(ood=GONE, split=BY_GROUP)),
    ("tasks mine", cells(sequences="both", encoder="esm2")),
    ("tasks mine", cells(sequences="features")),
    ("tasks mine", cells(options={"label": "kind"})),
    ("tasks mine", cells(ood={"tissue": ["lung"]})),
    ("tasks mine", cells(ood={"tissue": []}, options={"label": "kind"})),
    # how out-of-domain rows are chosen
    ("tasks mine", split_table({"by": "group", "ood": 0.2})),
    ("tasks mine", split_table({"by": "group", "column": "a"})),
    ("tasks mine", split_table({"by": "similarity", "ood": 0.2})),
    ("tasks mine", split_table(BY_GROUP | {"by": "similarity", "threshold": 0.4})),
    ("tasks mine", split_table({"by": "time", "column": "a"})),
    ("tasks mine", split_table({"by": "time", "column": "a", "ood": 0.2, "after": "2020-01-01"})),
    ("tasks mine", split_table({"by": "time", "column": "a", "after": "soon"})),
    ("tasks mine", split_table(BY_GROUP | {"after": "2020-01-01"})),
    ("tasks mine", split_table(BY_GROUP, columns=OWN_TABLE["columns"])),
    ("tasks mine", split_table(BY_GROUP | {"column": ["a"]})),
    ("tasks mine", split_table(BY_GROUP | {"column": ["a", "a"]})),
    ("tasks mine", split_table({"by": "time", "column": ["a", "b"], "ood": 0.2})),
    ("tasks mine", text("{gene}", ood=GONE, split={"by": "similarity", "ood": 0.2, "threshold": 0.4})),
    # forms of sequences
    ("tasks splice-donor sequences", ["feature"]),
    ("tasks splice-donor encoder", None),
    ("tasks splice-donor encoder", "esm3"),
    ("tasks splice-donor encoder", ["esm2", "esm3"]),
    ("tasks cell-type", {"train": 300, "sequences": "both", "encoder": "esm2"}),
    # recipes
    ("recipes cpt bio corpora", ["txt"]),
    ("recipes cpt bio num_train_epochs", 0),
    ("recipes cpt bio block_size", 1024),
    ("recipes sft brief learning_rat", 1.0),
    ("recipes sft brief learning_rate", "fast"),
    ("recipes sft brief learning_rate", float("nan")),
    ("recipes sft brief lr_scheduler_type", "consine"),
    ("recipes sft brief output_dir", "x"),
    ("recipes sft brief save_steps", 5),
    ("recipes sft brief num_train_epochs", 5),
    ("recipes sft brief warmup_ratio", 0.1),
    ("recipes sft brief warmup_steps", 5),
    ("recipes sft brief lr_scheduler_type", "constant_with_warmup"),
    ("recipes sft brief epochs", [2, 1]),
    ("recipes sft brief fraction", 1.5),
    ("recipes sft brief lora", {"r": 4, "alpha": 8}),
    ("recipes sft brief nodes", 2),
    ("recipes sft brief bridge", "lineer"),
    ("recipes sft brief train_bridge", True),
    ("recipes sft brief packing", "bfd"),
    ("recipes sft brief packing_strategy", "wrapped"),
    ("recipes sft brief attn_implementation", True),
    ("recipes rl grpo", {}),
    ("recipes rl grpo num_generations", 1),
    ("recipes rl grpo num_generations", 3),
    ("recipes rl grpo generation_batch_size", 12),
    ("recipes rl grpo", {"epochs": [1], "generation_batch_size": 8, "steps_per_generation": 1}),
    ("recipes rl grpo rewards", {"corect": 1.0}),
    ("recipes rl grpo rewards", {"correct": 0}),
    ("recipes rl grpo rewards", {"go_f1": 1}),
    ("recipes rl grpo rewards", {"my.py:9": 1}),
    ("recipes rl grpo examples", 301),
    # reinforcement learning with features
    ("recipes rl grpo repetition_penalty", 1.1),
    ("recipes rl grpo beta", 0.01),
    # reinforcement learning with vLLM
    ("recipes rl grpo", {"epochs": [1], "use_vllm": True, "top_p": 0.9, "vllm_mode": "server"}),
    ("recipes rl grpo vllm_server_port", 8000),
    # lineages
    ("lineages 0 sft", ["breif"]),
    ("lineages 0 cpt", ["boi"]),
    ("lineages 0 tasks", ["cell-tpye"]),
    ("lineages 0 backbones", ["giga"]),
    ("lineages 0 tasks", "some"),
    ("lineages 0 sequences", ["features"]),
    ("lineages 0 rl 0 recipe", "grop"),
    ("lineages 0 rl 0 from", [3]),
    ("lineages 0 rl 0 from", ["colt"]),
    ("lineages 0 rl 0 from", GONE),
    ("lineages 0 sft", []),
    ("recipes", {}),
    # budgets
    ("lineages 0", BUDGET | {"budget": {"epochs": 8, "split": [[4, 2]]}}),
    ("lineages 0", BUDGET | {"budget": {"epochs": 8, "split": [[5, 3]]}}),
    ("lineages 0", BUDGET | {"budget": {"split": [[8, 0]]}}),
    ("lineages 0", BUDGET | {"budget": {"epochs": 8, "examples": 8, "split": [[8, 0]]}}),
    ("lineages 0", BUDGET | {"rl": []}),
    ("lineages 0 budget", {"epochs": 8, "split": [[8, 0]]}),
    # the rest
    ("evaluation", {"batch": 3}),
    ("resources", {"train": {"gpu": 1}}),
]


def broken(key: str, value: Any) -> dict[str, str]:
    config = featured()
    put(config, keys(key), value)
    return problems(config)


def test_each_mistake_is_refused_at_its_key_with_its_message():
    """problems.txt has key and message of each. After a change that is meant: delete it and run the test twice."""
    refused = [broken(*row) for row in MISTAKES]
    assert all(refused)
    text = "".join(f"{key}: {message}\n" for found in refused for key, message in found.items())
    snapshot = HERE / "problems.txt"
    if not snapshot.is_file():
        snapshot.write_text(text)
    assert text == snapshot.read_text()


@pytest.mark.parametrize("rl", [{"from": ["cold"]}, {}], ids=["from", "budget"])
def test_bridge_that_a_cold_start_makes_must_be_trained(rl):
    config = featured()
    config["recipes"]["rl"]["grpo"]["train_bridge"] = False
    config["lineages"][0] |= {"rl": [{"recipe": "grpo"} | rl]}
    if not rl:
        config["lineages"][0]["budget"] = {"epochs": 8, "split": [[8, 0], [0, 8]]}
    assert list(problems(config)) == ["recipes.rl.grpo.train_bridge"]


def test_nodes_of_a_stage_share_its_ranks_and_gpus_evenly():
    config = small()
    config["recipes"]["sft"]["brief"] |= {"processes": 4, "nodes": 2}
    config["resources"] = {"sft": {"gpu": 3}}
    assert "resources.sft.gpu" in problems(config)["recipes.sft.brief.nodes"]
    config["resources"]["sft"]["gpu"] = 4
    assert not problems(config)


def test_packed_examples_need_the_size_of_a_block():
    config = small()
    config["recipes"]["sft"]["brief"] |= {"packing": True, "max_length": None}
    assert "packing is true" in problems(config)["recipes.sft.brief.max_length"]
    del config["recipes"]["sft"]["brief"]["max_length"]  # then it is that of trl.SFTConfig
    assert not problems(config)


def test_examples_and_fraction_exclude_each_other_and_fit_every_task():
    config = small()
    config["recipes"]["sft"]["brief"] |= {"examples": 4, "fraction": 0.5}
    assert list(problems(config)) == ["recipes.sft.brief.examples"]
    config["recipes"]["sft"]["brief"] = {"epochs": [1, 2, 4, 8], "examples": 301}  # cell-type has 300
    assert list(problems(config)) == ["recipes.sft.brief.examples"]


def test_secret_is_refused_and_not_repeated():
    config = small()
    config["tasks"]["splice-donor"]["question"] = "hf_" + "a" * 20
    message = problems(config)["tasks.splice-donor.question"]
    assert "hf_a" not in message


def test_all_problems_are_reported_at_once():
    config = small()
    for key, value in (("colour", 1), ("recipes sft brief learning_rat", 1.0), ("lineages 0 rl 0 from", [3])):
        put(config, keys(key), value)
    with pytest.raises(UserError, match=r"^3 problems in my\.yaml\n"):
        study.load(config, "my.yaml")
    assert set(problems(config)) == {"colour", "recipes.sft.brief.learning_rat", "lineages[0].rl[0].from[0]"}


def test_entry_of_the_wrong_shape_is_known_by_name_and_hides_no_other():
    config = small()
    config["recipes"]["sft"]["brief"]["fraction"] = 2
    config["lineages"].insert(0, {"sft": 3})
    config["lineages"][1]["sft"] += ["lnog"]
    assert set(problems(config)) == {"recipes.sft.brief.fraction", "lineages[0].sft", "lineages[1].sft[1]"}


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


@settings(max_examples=300)
@given(place=st.sampled_from(places(adapted())), scrap=SCRAPS)
def test_nonsense_anywhere_is_a_user_error_and_never_a_crash(place, scrap):
    config = adapted()
    put(config, place, scrap)
    with contextlib.suppress(UserError):
        study.load(config)


# --- YAML ---


def write(folder: Path, text: str, name: str = "bad.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("study: [a\nseeds: [0]\n", ":2:"),
        ("study: a\n\tseeds: [0]\n", ":2:"),
        ("study: !!python/object:os.system x\n", ":1:"),
        ("study: a\x00\n", ": broken YAML"),
        ("study: &a [*a]\n", ": broken YAML"),
        ("study: 2026-02-30\n", ": broken YAML"),
        ("", ": found nothing"),
        ("- a\n- b\n", ": found the list"),
        ("tasks:\n  no: {}\n", ":1: tasks.False: "),
    ],
)
def test_broken_yaml_is_named_with_its_line(tmp_path, text, start):
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=re.escape(f"{path}{start}")):
        study.read(path)


@pytest.mark.parametrize("content", [None, b"study: \xff\xfe\n"], ids=["missing", "not text"])
def test_unreadable_config_is_a_user_error(tmp_path, content):
    path = tmp_path / "bad.yaml"
    if content:
        path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(path))):
        study.read(path)


def test_problems_carry_their_lines_and_come_in_order(tmp_path):
    config = small()
    config["recipes"]["sft"]["brief"]["learning_rat"] = 1.0
    config["colour"] = "blue"
    path = write(tmp_path, yaml.safe_dump(config, sort_keys=False) + "study: again\n")
    lines = path.read_text().splitlines()
    numbers = [next(i for i, line in enumerate(lines, 1) if f"{key}:" in line) for key in ("learning_rat", "colour")]
    with pytest.raises(UserError) as caught:
        study.read(path)
    starts = [f"{path}:{number}: " for number in (*numbers, len(lines))]
    message = str(caught.value).splitlines()
    assert len(message) == 4
    assert all(line.startswith(start) for line, start in zip(message[1:], starts, strict=True))


def test_mistake_in_the_second_of_two_files_has_its_file_and_line(tmp_path):
    first = write(tmp_path, yaml.safe_dump(small()), "first.yaml")
    second = write(tmp_path, "# ours\nevaluation: {batch: 3}\n", "second.yaml")
    place = re.escape(f"{second}:2: evaluation.batch: ")
    with pytest.raises(UserError, match=place):
        study.read(first, second)
    merged = small() | {"evaluation": {"batch": 3}}
    with pytest.raises(UserError, match=place):
        study.load(merged, study.locate([first, second]))


def test_numbers_without_a_dot_are_numbers(tmp_path):
    config = featured()
    config["recipes"]["sft"]["brief"] |= {"learning_rate": "@", "fraction": "@"}
    encoder = config["encoders"]["nano-esm"]
    encoder["training"] |= {"learning_rate": "@", "mlm_probability": "@"}
    encoder["architecture"]["layer_norm_eps"] = "@"
    loaded = study.read(write(tmp_path, yaml.safe_dump(config).replace("'@'", "1e-3")))
    recipe, made = loaded.recipe("sft", "brief"), loaded.encoder("nano-esm")
    assert recipe["learning_rate"] == recipe["fraction"] == made["architecture"]["layer_norm_eps"] == 0.001
    assert made["training"]["learning_rate"] == made["training"]["mlm_probability"] == 0.001


def test_merge_keys_are_not_repeated_keys(tmp_path):
    text = yaml.safe_dump(small()).replace(
        "    long:\n      epochs:", "    long:\n      <<: {fraction: 0.5}\n      epochs:"
    )
    assert study.read(write(tmp_path, text)).recipe("sft", "long")["fraction"] == 0.5


def test_date_of_a_split_needs_no_quotes(tmp_path):
    config = small()
    config["tasks"]["mine"] = split_table({"by": "time", "column": "day", "after": "@"})
    text = yaml.safe_dump(config).replace("'@'", "2020-01-31")
    assert study.read(write(tmp_path, text)).spec("mine")["split"]["after"] == "2020-01-31"


# --- Options given by hand, and what others ask ---


def test_no_options_of_an_evaluation_are_its_defaults_and_those_of_a_study_stay_as_they_are():
    filled = study.load(small()).evaluation
    assert configs.evaluation_options({}) == filled
    assert configs.evaluation_options(filled) == filled
    assert configs.evaluation_options({"seed": 3, "batch_size": 7}) == filled | {"seed": 3, "batch_size": 7}


@pytest.mark.parametrize("options", [{"batch": 3}, {"batch_size": 0}, {"samples": "4"}])
def test_wrong_options_of_an_evaluation_are_refused(options):
    with pytest.raises(UserError, match=f"--options: {next(iter(options))}: "):
        configs.evaluation_options(options)


def test_keys_of_a_recipe_that_are_no_options_of_the_library():
    shared = {"lora", "deepspeed", "processes", "nodes", "save_minutes"}
    assert configs.recipe_keys("cpt") == shared | {"corpora", "block_size", "seed"}
    own = {"epochs", "fraction", "examples", "bridge", "attn_implementation"}
    assert configs.recipe_keys("sft") == shared | own
    assert configs.recipe_keys("rl") == shared | {
        "epochs",
        "fraction",
        "examples",
        "bridge",
        "train_bridge",
        "rewards",
        "concise_words",
        "validation",
    }
    assert configs.recipe_defaults("rl")["rewards"] == {"correct": 1.0, "well_formed": 0.1}
    evaluation = {*configs.evaluation_options({}), "engine", "seed", "shots"} - {"max_new_tokens"}
    assert configs.evaluation_keys() == evaluation
    assert configs.recipe_keys("encoder") == {"corpora", "block_size", "mlm_probability", "seed", "save_minutes"}


def test_every_adapter_says_what_its_options_are_and_has_defaults_of_their_type():
    for adapter in catalog.ADAPTERS.values():
        for option in adapter.options.values():
            assert option.meaning
            assert option.default is catalog.REQUIRED or trainer_options.fits(option.kind, option.default)
