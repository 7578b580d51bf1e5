"""A group of evaluations in one process: each result is the one that it would be alone."""

import os
import shutil
import signal
from pathlib import Path

import pytest
from evaluations import DEEP, OPTIONS, contents
from transformers import Qwen3ForCausalLM

from cisterna import models
from cisterna.artifacts import files, shutdown, work_folder
from cisterna.errors import UserError
from cisterna.evaluation import answering, evaluate, generate
from cisterna.sequences import engines
from tiny import adapted, backbone, publish

QUICK = OPTIONS | {"max_new_tokens": 10}


@pytest.fixture(scope="module")
def rungs(base, trained, tmp_path_factory):
    """A checkpoint, an adapter on it, and their base."""
    model = adapted(trained, size=0.02)
    adapter = publish(trained, tmp_path_factory.mktemp("rungs") / "checkpoint", model.save_pretrained)
    return [trained, adapter, base]


def members(checkpoints, data, folder):
    """Each evaluation's path, and what it reads."""
    return {
        str(folder / f"eval-{at}"): {"checkpoint": str(path), "data": str(data), "work": str(folder / f".work-{at}")}
        for at, path in enumerate(checkpoints)
    }


def answer(given, options, folder):
    outcome = answering.answer_group(given, options, folder / ".group", folder / "answers.json")
    assert files.read_json(folder / "answers.json") == outcome
    return list(outcome.values())


def score(given, options, output):
    """The evaluation as its own job makes it."""
    paths = {key: Path(value) for key, value in given[output].items()}
    output = Path(output)
    evaluate.evaluate(paths["checkpoint"], paths["data"], output, options, work=paths["work"])
    return contents(output)


@pytest.fixture
def no_model(monkeypatch):
    """From now on no model can be loaded."""

    def refuse():
        def load(*_, **__):
            raise AssertionError("a model is loaded")

        monkeypatch.setattr(generate, "load", load)

    return refuse


def alone(checkpoints, data, folder, options):
    for at, path in enumerate(checkpoints):
        evaluate.evaluate(path, data, folder / str(at), options)
    return [contents(folder / str(at)) for at in range(len(checkpoints))]


def test_results_are_those_of_evaluations_alone_and_load_no_model(rungs, splice, tmp_path, no_model):
    options = DEEP | {"max_new_tokens": 24}
    expected = alone(rungs, splice, tmp_path / "alone", options)
    given = members(rungs, splice, tmp_path)
    assert answer(given, options, tmp_path) == ["answered"] * 3
    no_model()
    assert [score(given, options, output) for output in given] == expected
    assert len({one["id.parquet"] for one in expected}) == 3
    assert answer(given, options, tmp_path) == ["answered already"] * 3


def test_vllm_is_started_for_each_architecture_and_gives_what_it_gives_alone(splice, tmp_path, monkeypatch):
    pytest.importorskip("vllm", reason="vLLM is not installed: make vllm")
    from cisterna.sequences import vllm_engine

    models.make_base(backbone(head_dim=32, initializer_range=0.3), tmp_path / "base")
    checkpoints = []
    for seed in (1, 2):
        model = adapted(tmp_path / "base", seed, modules_to_save=["embed_tokens", "lm_head"])
        checkpoints.append(publish(tmp_path / "base", tmp_path / f"adapter-{seed}", model.save_pretrained))
    options = {"max_new_tokens": 16, "batch_size": 7, "bootstrap": 20, "samples": 1, "calibration": True}
    options["engine"] = "vllm"
    expected = alone(checkpoints, splice, tmp_path / "alone", options)
    assert expected[0]["id.parquet"] != expected[1]["id.parquet"]
    models.make_base(backbone(head_dim=32, num_hidden_layers=1), tmp_path / "other")
    started, original = [], vllm_engine.Vllm.__init__

    def start(self, *given):
        started.append(given)
        original(self, *given)

    monkeypatch.setattr(vllm_engine.Vllm, "__init__", start)
    given = members([tmp_path / "other", *checkpoints], splice, tmp_path)
    assert answer(given, options, tmp_path) == ["answered"] * 3
    assert len(started) == 2
    assert [score(given, options, output) for output in list(given)[1:]] == expected
    assert len(started) == 2


def test_member_that_is_refused_is_left_to_its_own_evaluation_and_the_others_go_on(
    rungs, splice, tmp_path, monkeypatch
):
    broken = shutil.copytree(rungs[-1], tmp_path / "checkpoint")
    (broken / "config.json").write_text("{}")
    given = members([rungs[0], broken, rungs[-1]], splice, tmp_path)
    first, second, third = answer(given, QUICK, tmp_path)
    assert (first, third) == ("answered", "answered")
    assert second.startswith(f"left to its own evaluation: {broken}/config.json: its SHA-256")
    with pytest.raises(UserError, match=r"checkpoint/config\.json: its SHA-256"):
        score(given, QUICK, list(given)[1])


def test_member_whose_work_folder_is_in_use_is_left_to_its_own_evaluation(rungs, splice, tmp_path):
    given = members(rungs[:2], splice, tmp_path)
    with work_folder.locked(tmp_path / ".work-0"):
        first, second = answer(given, QUICK, tmp_path)
    assert "another process is working on this stage" in first
    assert second == "answered"


@pytest.mark.parametrize("changed", ["checkpoint", "options", "samples"])
def test_member_that_changed_is_answered_anew_by_its_own_evaluation(rungs, splice, tmp_path, changed):
    given, options = members(rungs[:2], splice, tmp_path), DEEP | QUICK
    answer(given, options, tmp_path)
    output = list(given)[1]
    if changed == "checkpoint":
        given[output]["checkpoint"] = str(rungs[2])
    else:
        options = options | {"options": {"max_new_tokens": 6}, "samples": {"samples": 1}}[changed]
    found = score(given, options, output)
    assert [found] == alone([Path(given[output]["checkpoint"])], splice, tmp_path / "alone", options)


def test_stopped_group_keeps_what_is_answered_and_goes_on(rungs, splice, tmp_path, monkeypatch):
    """SIGTERM after the third batch of the second member; a member has 8 batches."""
    expected = alone(rungs[:2], splice, tmp_path / "alone", QUICK)
    given, batches = members(rungs[:2], splice, tmp_path), []
    original = Qwen3ForCausalLM.generate

    def run(self, **options):
        batches.append(len(batches))
        if len(batches) == 8 + 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, **options)

    monkeypatch.setattr(Qwen3ForCausalLM, "generate", run)
    with pytest.raises(shutdown.Stopped, match="after 21 of 48 examples"):
        answer(given, QUICK, tmp_path)
    assert not (tmp_path / "answers.json").exists()
    assert answer(given, QUICK, tmp_path) == ["answered already", "answered"]
    assert len(batches) == 16
    assert [score(given, QUICK, output) for output in given] == expected


def test_sigterm_between_two_members_is_not_lost(rungs, splice, tmp_path, monkeypatch):
    given = members(rungs[:2], splice, tmp_path)
    forget = engines.Shared.forget

    def last(self):
        forget(self)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(engines.Shared, "forget", last)
    with pytest.raises(shutdown.Stopped, match="after 1 of 2 evaluations"):
        answer(given, QUICK, tmp_path)
