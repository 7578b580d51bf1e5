"""What a valid config expands to: models, their paths, recipes and evaluations."""

import copy
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cisterna import study
from cisterna.constants import FORMS
from cisterna.errors import UserError
from cisterna.study.config.types import RESERVED
from studies import OWN_TABLE, Config, adapted, featured, small

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = ROOT / "config" / "config.yaml"


def test_default_study_has_the_promised_models():
    default = study.read(DEFAULT)
    kinds = [model.kind for model in default.models]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "base": 2,
        "cpt": 1,
        "sft": 4 * 2 * 4 + 2 * 4 + 4,
        "rl": 2 * (2 + 1) * 2 + 2 + 2,
    }
    assert sum(kind != "base" for kind in kinds) >= 30
    assert len(default.evaluations()) == 44 + 16 + 4 + 4 + 2
    assert default.seeds == (0,)
    assert default.corpora == ("dna", "rna", "protein", "text", "task-text")
    assert default.tasks == ("promoter-expression", "splice-donor", "cell-type", "protein-fitness")
    assert default.encoders == ("nano-esm",)
    assert default.banks == (("nano-esm", "protein-fitness"),)


def test_default_study_has_exactly_these_paths_for_one_task():
    default = study.read(DEFAULT)
    task = "promoter-expression"
    paths = [model.path for model in default.models if model.task == task]
    rl = {
        "nano/base": ("e2/rl-grpo/e2", "e2/rl-grpo/e4", "e8/rl-grpo/e2", "e8/rl-grpo/e4", "e8/rl-grpo-r32/e2"),
        "nano/cpt-bio": ("e8/rl-grpo/e2", "e8/rl-grpo/e4"),
        "pico/base": (),
    }
    assert sorted(paths) == sorted(
        f"models/{origin}/{task}/s0/sft-brief/{rest}"
        for origin, trained in rl.items()
        for rest in ("e1", "e2", "e4", "e8", *trained)
    )
    assert [path for path, _, name in default.evaluations() if name == task][:2] == [
        f"models/nano/base/{task}/eval",
        f"models/nano/base/{task}/s0/sft-brief/e1/eval",
    ]
    assert (f"models/nano/cpt-bio/{task}/eval", "models/nano/cpt-bio", task) in default.evaluations()


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
    assert below(budget("cosine")) == ["sft-brief/e8", "sft-brief/e4", "sft-brief/e4/rl-grpo/e4", "rl-grpo/e8"]


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


def test_seeds_of_a_lineage_replace_those_of_the_study_in_it():
    given = small()
    given["lineages"] = [given["lineages"][0], given["lineages"][0] | {"tasks": ["splice-donor"], "seeds": [0, 3]}]
    found = {(model.task, model.seed) for model in study.load(given).models if model.task}
    assert {seed for task, seed in found if task == "splice-donor"} == {0, 3}
    assert {seed for task, seed in found if task != "splice-donor"} == {0}


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
    assert loaded.options("sft", "brief") == {"learning_rate": 1e-4, "lr_scheduler_type": "constant"}
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
    for form, sft, rl in (("features-nano-esm/", {"bridge"}, {"bridge", "train_bridge"}), ("", set(), set())):
        for path, bridge in (("e1", sft), ("e1/rl-grpo/e1", rl)):
            given = loaded.stage(loaded.model(f"{folder}/{form}s0/sft-brief/{path}"))
            assert {"bridge", "train_bridge"} & set(given) == bridge
            assert "epochs" not in given
            assert given["save_minutes"] == 10.0


def test_unknown_path_is_a_user_error_with_the_nearest_model():
    loaded = study.load(small())
    with pytest.raises(UserError, match="models/nano/cpt-bio"):
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


def test_nodes_and_attempts_change_what_a_job_asks_for_and_not_its_recipe():
    given = small()
    given["recipes"]["sft"]["brief"]["processes"] = 2
    one = study.load(given)
    given["recipes"]["sft"]["brief"]["nodes"] = 2
    two = study.load(given)
    model = next(model for model in one.models if model.kind == "sft" and model.recipe == "brief")
    assert one.stage(model) == two.stage(model)
    asked = [one.resources("sft", attempt) for attempt in (1, 2, 3)]
    assert [(each["mem_mb"], each["runtime"]) for each in asked] == [(3000, 60), (4500, 90), (6000, 120)]
    assert len({(each["threads"], each["gpu"]) for each in asked}) == 1


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
    assert found["pathways"]["options"]["flank"] == 1024
    assert found["files"]["options"] == found["pathways"]["options"] | {"flank": 9}
    assert found["blood"]["options"]["genes"] == 100
    assert (found["pathways"]["train"], found["files"]["train"], found["blood"]["train"]) == (50, "all", 1000)
    assert loaded.sources("pathways") == []
    assert loaded.sources("files") == ["a.csv", "b.csv", "c.csv"]
    assert loaded.sources("functions") == ["a.csv", "b.csv", "go.obo"]
    assert loaded.sources("mine") == ["data/my-assay.csv"]
    assert loaded.sources("splice-donor") == ["resources/tasks/splice-donor.parquet"]
    assert study.load(json.loads(json.dumps(loaded.config))) == loaded


def test_weights_of_terms_are_a_file_or_a_word():
    given = adapted()
    for weights, files in (("train", []), ("ia.txt", ["ia.txt"]), (None, [])):
        given["tasks"]["functions"]["options"]["weights"] = weights
        assert study.load(given).sources("functions") == ["a.csv", "b.csv", "go.obo", *files]


def test_rl_without_features_may_do_what_a_bridge_forbids():
    given = featured()
    given["recipes"]["rl"]["grpo"] |= {"repetition_penalty": 1.1, "beta": 0.01, "train_bridge": False}
    given["lineages"][0] |= {"sequences": ["tokens"], "rl": [{"recipe": "grpo", "from": [1, "cold"]}]}
    study.load(given)


def test_rl_with_features_may_have_a_reference_model_under_lora_and_a_frozen_bridge_after_sft():
    given = featured()
    given["recipes"]["rl"]["grpo"] |= {"beta": 0.01, "lora": {"r": 4, "lora_alpha": 8}, "train_bridge": False}
    given["recipes"]["rl"]["grpo"] |= {"use_vllm": True, "vllm_mode": "colocate", "min_p": 0.0}
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


# --- Any valid study ---

NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,5}", fullmatch=True).filter(lambda name: name not in RESERVED)
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
                {"recipe": name, "from": draw(st.lists(starts, min_size=1, unique=True, max_size=3))}
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


@settings(max_examples=100)
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


def test_group_of_evaluations_is_a_lineage_or_a_backbone():
    def groups(how):
        given = featured() | {"evaluation": {"group": how}}
        return study.load(given)

    assert groups("none").groups == {}
    loaded = groups("lineage")
    start = "models/nano/cpt-bio/splice-donor"
    assert {f"{start}/s0", f"{start}/features-nano-esm/s0", "models/nano/base/cell-type/s0"} < loaded.groups.keys()
    tuned = {folder for folder, path, _ in loaded.evaluations() if loaded.model(path).task}
    assert loaded.group_of.keys() == tuned  # base and CPT models are evaluated alone
    for group, members in loaded.groups.items():
        assert all(folder.startswith(f"{group}/") for folder, _, _ in members)
        assert len(members) == 4 + 4  # rungs of SFT and of RL
    whole = groups("backbone")
    assert whole.groups == {"models/nano": whole.evaluations()}


def test_rl_from_cold_is_in_no_group_of_a_lineage():
    """A cold start that earns nothing fails, and may not keep the evaluations of SFT waiting."""
    given = small() | {"evaluation": {"group": "lineage"}}
    given["lineages"] = [{"sft": ["brief"], "rl": [{"recipe": "grpo", "from": ["cold", 2]}]}]
    loaded = study.load(given)
    grouped = {loaded.model(folder.removesuffix("/eval")) for folder in loaded.group_of}
    alone = {model for model in loaded.models if model.task} - grouped
    assert grouped
    assert {(model.kind, model.sft) for model in alone} == {("rl", None)}


def test_group_changes_no_option_of_an_evaluation():
    alone, together = (study.load(small() | {"evaluation": {"group": how}}) for how in ("none", "lineage"))
    assert alone.evaluation == together.evaluation


def test_one_evaluation_is_no_group():
    given = small() | {"evaluation": {"group": "lineage"}}
    given["recipes"]["sft"]["brief"]["epochs"] = [1]
    given["lineages"] = [{"sft": ["brief"]}]
    assert study.load(given).groups == {}
