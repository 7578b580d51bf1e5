"""What the Snakefile gets from Python: errors, files of the config, targets."""

import traceback
from types import SimpleNamespace

import pytest

from cisterna.artifacts import files
from cisterna.errors import UserError
from cisterna.runtime import snakefile


def test_error_of_the_user_is_one_of_snakemakes_without_frames():
    with pytest.raises(snakefile.StudyError, match="seeds") as caught, snakefile.refusing():
        raise UserError("config.yaml:3: seeds: ...")
    assert traceback.extract_tb(caught.value.__traceback__) == []


def test_bug_stays_a_bug():
    with pytest.raises(KeyError), snakefile.refusing():
        raise KeyError("x")


@pytest.mark.parametrize(
    ("given", "config", "module", "expected"),
    [
        ([], {}, False, [files.DEFAULT_CONFIG]),
        ([], {"study": "renamed"}, False, [files.DEFAULT_CONFIG]),  # --config study=renamed
        (["mine.yaml"], {"study": "mine"}, False, ["mine.yaml"]),
        (["seeds.yaml"], {"seeds": [1]}, False, [files.DEFAULT_CONFIG, "seeds.yaml"]),
        (["of-the-other.yaml"], {"study": "mine"}, True, []),
    ],
)
def test_study_is_the_default_one_unless_a_file_is_a_study(given, config, module, expected, monkeypatch, tmp_path):
    monkeypatch.chdir(files.CLONE)
    modifier = SimpleNamespace(skip_configfile=module, path_modifier=None)
    workflow = SimpleNamespace(overwrite_configfiles=given, modifier=modifier)
    assert [str(path) for path in snakefile.config_files(workflow, config)] == [str(path) for path in expected]
