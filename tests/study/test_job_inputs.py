"""Words of shell lines that hold a config."""

import pytest

from cisterna import study
from cisterna.cli.registry import read_study
from cisterna.errors import UserError
from cisterna.study import inputs
from clones import CONFIG, edited

LIMIT = 128 * 1024  # of Linux, for one word of a command


@pytest.mark.parametrize("recipes", [1, 1000])
def test_study_of_any_size_fits_one_word_of_a_shell_line(recipes):
    config = edited()
    config["recipes"]["sft"] |= {f"brief-{number}": CONFIG["recipes"]["sft"]["brief"] for number in range(recipes)}
    word = inputs.pack(config)
    assert len(word) < LIMIT
    assert read_study([word]).config == study.load(config).config
    assert word.startswith("{") == (recipes == 1)


def test_word_that_is_no_config_is_refused():
    for word in ("{broken", "zlib:abc", "zlib:abcd"):
        with pytest.raises(UserError, match="--config"):
            read_study([word])


def test_text_that_ends_a_script_of_a_page_is_not_in_json():
    assert "<" not in inputs.as_json({"question": "</script>"})
