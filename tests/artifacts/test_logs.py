"""How a job ended, by its log."""

import pytest

from cisterna.artifacts import logs

TRACE = "Traceback (most recent call last):\n  File ...\n    raise\nValueError: 3 is not 4\n"
TORCHRUN = (
    "Traceback (most recent call last):\n  File ...\n"
    "torch.distributed.elastic.multiprocessing.api.SignalException: Process 9576 got signal: 15\n"
    "srun: error: node2: task 1: Terminated\n"
)


@pytest.mark.parametrize(
    ("text", "state", "message"),
    [
        ("", "unknown", ""),
        ("step 30/120 loss 0.5\n", "unknown", ""),
        ("step 30/120\nstopped: state of step 30 saved\n", "stopped", ""),
        ("stopped: state of step 30 saved\nstep 31/120\n", "unknown", ""),  # resumed since
        (f"stopped: state of step 30 saved\n{TORCHRUN}", "stopped", ""),
        ("Traceback (most recent call last):\n  File x\nKeyboardInterrupt\n", "stopped", ""),
        (
            "error: the loss is nan;\n  lower \x1b[31mlearning_rate\n",
            "failed",
            "the loss is nan; lower [31mlearning_rate",
        ),
        ("x\n" * 100_000 + TRACE, "failed", "ValueError: 3 is not 4"),
        (TRACE + "error: the second\n" + "torchrun says more\n", "failed", "the second torchrun says more"),
    ],
    ids=["empty", "running", "stopped", "resumed", "torchrun", "ctrl-c", "error", "traceback", "error-after-traceback"],
)
def test_state_and_message_are_those_of_the_end_of_the_log(tmp_path, text, state, message):
    log = tmp_path / "e1.log"
    log.write_text(text)
    end = logs.ending(log)
    assert end
    assert (end.state, end.message, end.when) == (state, message, log.stat().st_mtime)


def test_job_without_a_log_has_no_ending(tmp_path):
    assert logs.ending(tmp_path / "e1.log") is None
