"""Work folders are locked, and cleared of what another run has left."""

import pytest

from cisterna.artifacts import work_folder
from cisterna.errors import UserError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def use(work, facts):
    """What a run with these facts finds in the work folder; it leaves a file and a folder there."""
    with work_folder.folder(work, work.parent / "output", facts):
        before = names(work)
        (work / "shard").write_text("features")
        (work / "batches").mkdir(exist_ok=True)
    return before


def test_what_a_run_of_the_same_facts_left_is_kept(tmp_path, capsys):
    use(tmp_path / "work", {"data": 1, "options": {"a": [2]}})
    left = use(tmp_path / "work", {"options": {"a": [2]}, "data": 1})
    assert left == [".lock", "batches", "fingerprint.json", "shard"]
    assert capsys.readouterr().out == ""


def test_what_a_run_of_other_facts_left_is_removed_and_the_log_says_why(tmp_path, capsys):
    use(tmp_path / "work", {"data": 1, "options": {"a": 2}})
    assert use(tmp_path / "work", {"data": 1, "options": {"a": 3}}) == [".lock", "fingerprint.json"]
    assert "(options changed)" in capsys.readouterr().out


def test_only_what_matches_is_removed_and_a_reason_removes_it_in_any_case(tmp_path, capsys):
    use(tmp_path, {"data": 1})
    work_folder.discard_stale(tmp_path, {"data": 2}, "batch*")
    assert "shard" in names(tmp_path)
    assert "batches" not in names(tmp_path)
    work_folder.discard_stale(tmp_path, {"data": 2}, "shard*", reason="the rung below is gone")
    assert "shard" not in names(tmp_path)
    assert "the rung below is gone" in capsys.readouterr().out


def test_stage_that_is_already_running_is_refused_and_leftovers_of_a_killed_one_are_removed(tmp_path):
    (tmp_path / ".output.abcdefgh").mkdir()
    with work_folder.folder(tmp_path / "work", tmp_path / "output", {}):
        assert names(tmp_path) == ["work"]
        with (
            pytest.raises(UserError, match="another process"),
            work_folder.folder(tmp_path / "work", tmp_path / "output", {"data": 2}),
        ):
            pass
