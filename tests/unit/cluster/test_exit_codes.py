"""Errors that the user can fix are one message of rank 0 and an exit code; others are raised."""

from __future__ import annotations

import contextlib
import errno
import re

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from sppo_megatron.cluster import exit_codes as ending
from sppo_megatron.cluster.exit_codes import exit_code_of
from sppo_megatron.errors import ConfigError, TrainingError


def raising(error: Exception):
    def run() -> int:
        raise error

    return run


def test_the_exit_code_of_the_run():
    assert exit_code_of("training", lambda: 75) == 75


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("bad key"), 2, "configuration error: bad key\n"),
        (TrainingError("no server"), 1, "training stopped: no server\n"),
        (OSError(errno.ENOSPC, "No space left"), 1, "training stopped: the disk is full: [Errno 28] No space left\n"),
    ],
)
def test_what_the_user_can_mend_is_one_message(capsys, error, code, said):
    assert exit_code_of("training", raising(error)) == code
    assert capsys.readouterr().err == said


def test_other_ranks_are_silent_and_let_the_first_speak(capsys, monkeypatch):
    waited = []
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(ending.time, "sleep", waited.append)
    assert exit_code_of("training", raising(ConfigError("bad key"))) == 2
    assert waited == [30] and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConfigError("bad key"), r"configuration error: bad key"),
        (RuntimeError("a defect"), r"(?s)Traceback .*in run\n.*RuntimeError: a defect"),
    ],
)
def test_the_report_of_torchrun_ends_with_it(tmp_path, monkeypatch, error, told):
    """Read as torchrun reads it."""
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with contextlib.suppress(RuntimeError):
        exit_code_of("training", raising(error))
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(tmp_path / "error.json"))
    report = ChildFailedError("train", {0: failure}).format_msg()
    assert re.search(told, report) and "To enable traceback" not in report


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "Permission denied"), RuntimeError("a defect")])
def test_errors_of_the_program_are_raised(error):
    with pytest.raises(type(error)):
        exit_code_of("training", raising(error))
