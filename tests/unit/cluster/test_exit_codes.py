"""Errors that the user can mend are one message of rank 0 and an exit code; others are raised."""

from __future__ import annotations

import errno

import pytest

from sppo_megatron.cluster import exit_codes as ending
from sppo_megatron.cluster.exit_codes import run_to_end
from sppo_megatron.errors import ConfigError, TrainingError


def raising(error: Exception):
    def run() -> int:
        raise error

    return run


def test_the_exit_code_of_the_run():
    assert run_to_end("training", lambda: 75) == 75


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("bad key"), 2, "configuration error: bad key\n"),
        (TrainingError("no server"), 1, "training stopped: no server\n"),
        (OSError(errno.ENOSPC, "No space left"), 1, "training stopped: the disk is full: [Errno 28] No space left\n"),
    ],
)
def test_what_the_user_can_mend_is_one_message(capsys, error, code, said):
    assert run_to_end("training", raising(error)) == code
    assert capsys.readouterr().err == said


def test_other_ranks_are_silent_and_let_the_first_speak(capsys, monkeypatch):
    waited = []
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(ending.time, "sleep", waited.append)
    assert run_to_end("training", raising(ConfigError("bad key"))) == 2
    assert waited == [30] and capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "Permission denied"), RuntimeError("a defect")])
def test_errors_of_the_program_are_raised(error):
    with pytest.raises(type(error)):
        run_to_end("training", raising(error))
