"""GRPO with completions from vLLM: from the policy that is trained, with features and adapters, resumed and on ranks.

The rewards here differ between the completions of a model that has learned nothing.
"""

from importlib.metadata import PackageNotFoundError

import pytest
from safetensors.torch import load_file
from test_resume import interrupt
from test_zero import on_ranks, torchrun

from cisterna import models
from cisterna.artifacts import files
from cisterna.artifacts.work_folder import FINGERPRINT
from cisterna.errors import UserError
from cisterna.sequences import engines
from cisterna.training import rollouts
from runs import RL, Run, published
from tiny import backbone

SHAPE = {"head_dim": 32, "initializer_range": 0.3}  # on a CPU vLLM has no kernel for some sizes of heads
OWN = """def early(output, answer, labels):
    return (sum(map(ord, output)) % 7) / 7
"""
OPTIONS = {"use_vllm": True, "max_completion_length": 96, "learning_rate": 5e-3, "save_minutes": 0}
RATE = OPTIONS["learning_rate"]
SAVED = {"r": 2, "lora_alpha": 4, "modules_to_save": ["embed_tokens"]}
MORE = {"lora": SAVED, "validation": True}
ENGINE = {"name": "vllm", "dtype": "float32"}


@pytest.fixture(scope="module")
def installed():
    pytest.importorskip("vllm", reason="vLLM is not installed: make vllm")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("rewards") / "own.py"
    path.write_text(OWN)
    return RL | OPTIONS | {"rewards": {f"{path}:early": 1.0}}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A base with weights of its own for the output layer, and one with those of the embeddings."""
    folder = tmp_path_factory.mktemp("bases")
    for tie in (False, True):
        models.make_base(backbone(**SHAPE, tie_word_embeddings=tie), folder / f"tied-{tie}")
    return {tie: folder / f"tied-{tie}" for tie in (False, True)}


@pytest.fixture(scope="module")
def features(bank):
    """How a stage reads its sequences as features."""
    return {"sequences": "features", "bank": bank}


@pytest.fixture(scope="module")
def straight(installed, recipe, bases, splice, tmp_path_factory):
    return Run("rl", bases[False], splice, tmp_path_factory.mktemp("straight") / "run", recipe, 1).here()


@pytest.fixture(scope="module")
def featured(installed, recipe, bases, splice, features, tmp_path_factory):
    """Of features, with embeddings that are trained in full and an output layer that is not, and with validation."""
    folder = tmp_path_factory.mktemp("featured") / "run"
    return Run("rl", bases[True], splice, folder, recipe | MORE, 1, reads=features).here()


def check(run, least=RATE / 2):
    """That the engine had the weights of the trainer in every step, and that there was something to learn."""
    entries = [entry for entry in run.history if rollouts.UPDATE_KEPT in entry]
    assert len(entries) == 3
    assert all(entry[rollouts.DIFFERENCE.format("max")] < 1e-4 for entry in entries)
    assert all(entry[rollouts.UPDATE_KEPT] > 0.999 for entry in entries)
    assert any(entry["frac_reward_zero_std"] < 1 for entry in entries)
    assert run.manifest["trained"]["largest_weight_change"] > least
    assert run.manifest["trained"]["engine"].items() >= ENGINE.items()
    measured = run.manifest["measured"]["engine"]
    assert measured["logp_difference"] == max(entry[rollouts.DIFFERENCE.format("mean")] for entry in entries)
    assert measured["update_kept"] == min(entry[rollouts.UPDATE_KEPT] for entry in entries)


def test_completions_are_from_the_policy_that_is_trained_and_the_engine_is_recorded(straight):
    check(straight)
    engine = straight.manifest["trained"]["engine"]
    assert engine == ENGINE | {"version": engines.packages(engines.VLLM)["vllm"]}
    assert files.read_json(straight.work / FINGERPRINT)["engine"] == engine


def test_features_of_a_frozen_bridge_and_dropout_without_correction(
    featured, recipe, splice, features, tmp_path, capsys
):
    check(featured)
    above = recipe | {"train_bridge": False, "vllm_importance_sampling_correction": False, "temperature": 0.7}
    above |= {"lora": {"r": 2, "lora_alpha": 4, "lora_dropout": 0.2}, "vllm_enable_sleep_mode": True}
    check(Run("rl", featured.output, splice, tmp_path / "above", above, 1, reads=features).here())
    assert "vLLM cannot sleep on a CPU, so that its engine stays awake" in capsys.readouterr().out


def test_killed_run_resumes_to_the_same_bytes(straight, recipe, bases, splice, tmp_path, capsys):
    asked = Run("rl", bases[False], splice, tmp_path / "run", recipe, 1)
    interrupt(asked, "on_save", 1)
    assert asked.here().manifest["identity"] == straight.manifest["identity"]
    assert "resuming from step 1 of 3" in capsys.readouterr().out


@pytest.fixture(scope="module")
def on_two_ranks(installed, recipe, bases, splice, features, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    plain, zero2, zero3 = (on_ranks(recipe, name) for name in (None, "zero2", "zero3"))
    full = zero2 | {"lora": None, "learning_rate": RATE / 10}
    runs = {
        "plain": Run("rl", bases[False], splice, folder / "plain", plain, 1),
        "zero2": Run("rl", bases[True], splice, folder / "zero2", full, 1),
        "zero3": Run("rl", bases[True], splice, folder / "zero3", zero3 | MORE, 1, reads=features),
    }
    torchrun([run.arguments for run in runs.values()], folder)
    return runs


def test_ranks_draw_the_completions_of_one_process_and_train_the_same(on_two_ranks, straight, featured):
    """Without DeepSpeed, and sharded, where a bridge and embeddings are trained with features."""
    for name, one in (("plain", straight), ("zero3", featured)):
        two = on_two_ranks[name]
        check(two)
        for entry, other in zip(two.history, one.history, strict=True):
            for key in {"reward", "completions/mean_length", "entropy"} & entry.keys():
                assert entry[key] == pytest.approx(other[key], rel=1e-4)
        first, second = load_file(one.weights), load_file(two.weights)
        assert max((first[key] - second[key]).abs().max().item() for key in first) < 0.01 * RATE


def test_all_weights_with_tied_embeddings_are_trained_on_two_ranks(on_two_ranks):
    check(on_two_ranks["zero2"], RATE / 20)


def test_run_whose_engine_misses_an_update_fails_with_the_numbers(
    installed, recipe, bases, splice, tmp_path, monkeypatch
):
    original, synced = rollouts.Rollouts.sync_weights, []

    def once(self):
        if not synced:
            original(self)
        synced.append(1)

    monkeypatch.setattr(rollouts.Rollouts, "sync_weights", once)
    with pytest.raises(
        UserError, match=r"after step [12] .* differ by \S+ on average .* tokens; expected at most 0.001"
    ):
        Run("rl", bases[False], splice, tmp_path / "run", recipe, 1).here()
    assert not published(tmp_path)


def test_vllm_that_is_not_installed_is_refused_before_anything_is_done(base, splice, tmp_path, monkeypatch):
    def missing(name):
        raise PackageNotFoundError

    monkeypatch.setattr(engines, "version", missing)
    with pytest.raises(UserError, match=r"vllm is not installed; run `make vllm`, or .* use_vllm: false"):
        Run("rl", base, splice, tmp_path / "run", RL | {"use_vllm": True}, 1).here()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("option", "value"), [("top_p", 0.9), ("vllm_mode", "server"), ("vllm_max_model_length", 64)])
def test_options_that_the_engine_does_not_support_are_refused(installed, base, splice, tmp_path, option, value):
    with pytest.raises(UserError, match=rf"recipe: {option}: found .*{value}.*; expected .* with use_vllm"):
        Run("rl", base, splice, tmp_path / "run", RL | {"use_vllm": True, option: value}, 1).here()
