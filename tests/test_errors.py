"""Messages of errors: those of libraries are kept whole, and nothing in them can steer a terminal."""

import pytest

from cisterna import cli
from cisterna.errors import one_line, printable


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError("We couldn't connect.\nCheck your  connection.\n"), "We couldn't connect. Check your connection."),
        (ValueError("\n"), "ValueError"),
        (KeyError(), "KeyError"),
        (ValueError("100% {of} $x"), "100% {of} $x"),
        (ValueError("a\x1b[31mb\r\nc\x00"), r"a\x1b[31mb\r c\x00"),
    ],
)
def test_message_is_whole_and_one_line(error: Exception, line: str) -> None:
    assert one_line(error) == line


def test_letters_of_every_script_are_printed_and_control_characters_are_escaped() -> None:
    assert printable("naïve 中文 🧬\n\tx") == "naïve 中文 🧬\n\tx"
    assert printable("\x1b]0;title\x07 \u202egnp.exe \x9b2J") == r"\x1b]0;title\x07 \u202egnp.exe \x9b2J"


def test_name_with_an_escape_sequence_is_no_command_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["audit", "no\x1b[2Jsuch"]) == 2
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert r"no\x1b[2Jsuch" in error
