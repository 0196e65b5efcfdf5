"""Checkpoints of one process: what may be loaded where, and saves that go wrong. Layouts: tests/distributed."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest

from sppo_megatron.config import Config, OptimizerConfig, PrecisionConfig
from sppo_megatron.errors import TrainingError
from sppo_megatron.policy.checkpoint.folder import latest_checkpoint, partial_path
from sppo_megatron.policy.checkpoint.training import Checkpointer, _end_with_rank, check_fits
from sppo_megatron.policy.policy import Policy
from tests.tiny_policy import frozen, random_batch, tiny_policy


@pytest.fixture(scope="module")
def policy() -> Iterator[Policy]:
    """After one step: before it there is no optimizer state to save."""
    run = Config(
        precision=PrecisionConfig(dtype="fp32"), optimizer=OptimizerConfig(use_distributed_optimizer=False, lr=1e-3)
    )
    with tiny_policy(run, num_hidden_layers=1) as policy:
        batch = frozen(random_batch(4), policy)
        policy.train_step(batch, batch.minibatches[0])
        yield policy


@pytest.fixture(scope="module")
def saved(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    Checkpointer(policy, folder, keep_last=1, async_save=False).save(1, lambda folder: None)
    return folder / "step_00000001"


def test_fits_its_own_model_and_optimizer(policy: Policy, saved: Path) -> None:
    check_fits(saved, policy.model.description(), False, "fp32")


def test_another_model_is_named(policy: Policy, saved: Path) -> None:
    other = policy.model.description() | {"num_layers": 2, "qkv_bias": False}
    with pytest.raises(ValueError, match=r"num_layers is 1 there and 2 here; qkv_bias is True there and False here$"):
        check_fits(saved, other, False, "fp32")


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ((True, "fp32"), "Continue it with optimizer.use_distributed_optimizer=false$"),
        ((False, "bf16"), "precision.dtype is fp32 there and bf16 here. Continue it with precision.dtype=fp32$"),
    ],
)
def test_another_optimizer_is_refused_with_what_to_set(policy, saved, settings, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        check_fits(saved, policy.model.description(), *settings)


def test_nothing_is_saved_before_the_first_step(policy: Policy, tmp_path: Path) -> None:
    Checkpointer(policy, tmp_path, keep_last=1, async_save=False).save(0, lambda folder: None)
    assert not list(tmp_path.iterdir())


def test_a_failed_asynchronous_save_is_one_message(policy: Policy, tmp_path: Path) -> None:
    checkpointer = Checkpointer(policy, tmp_path, keep_last=2, async_save=True)
    checkpointer.save(1, lambda folder: None)
    checkpointer.save(2, lambda folder: None)
    shutil.rmtree(partial_path(tmp_path / "step_00000002"))  # a disk that goes away while it is written to
    with pytest.raises(TrainingError, match=r"step_00000002 could not be written \(rank 0: "):
        checkpointer.finalize()
    assert latest_checkpoint(tmp_path) == tmp_path / "step_00000001"
    checkpointer.save(3, lambda folder: None)
    checkpointer.finalize()
    assert latest_checkpoint(tmp_path) == tmp_path / "step_00000003"


def test_an_error_of_the_program_in_a_save_stays_what_it_is(policy: Policy, tmp_path: Path) -> None:
    """Nobody makes room for it; what was half written is gone all the same."""

    def write(folder: Path) -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        Checkpointer(policy, tmp_path, keep_last=1, async_save=False).save(1, write)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["full", "failing"])
def test_only_a_full_disk_wants_room(policy: Policy, tmp_path: Path, number: int) -> None:
    def write(folder: Path) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(TrainingError, match=os.strerror(number)) as raised:
        Checkpointer(policy, tmp_path, keep_last=1, async_save=False).save(1, write)
    assert ("make room" in str(raised.value)) == (number == errno.ENOSPC)


def test_a_folder_that_is_lost_to_another_job_is_left_alone(policy: Policy, tmp_path: Path) -> None:
    def lost() -> None:
        raise TrainingError("taken over")

    theirs = tmp_path / "step_00000001.partial"
    theirs.mkdir()
    (theirs / "model.json").write_text("{}")
    with pytest.raises(TrainingError, match="taken over"):
        Checkpointer(policy, tmp_path, keep_last=1, async_save=False, check_folder=lost).save(1, lambda folder: None)
    assert theirs.exists()


def test_closing_gives_up_a_save_under_way(policy: Policy, tmp_path: Path) -> None:
    checkpointer = Checkpointer(policy, tmp_path, keep_last=1, async_save=True)
    checkpointer.save(1, lambda folder: None)
    checkpointer.close()
    assert not [child for child in multiprocessing.active_children() if isinstance(child, ForkProcess)]
    checkpointer.finalize()
    assert latest_checkpoint(tmp_path) is None
    checkpointer.save(2, lambda folder: None)
    checkpointer.finalize()
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000002"]


def _start_writer_and_die(pid_file: Path) -> None:
    writer = multiprocessing.get_context("fork").Process(target=_end_with_rank, args=(time.sleep, 60))
    writer.start()
    pid_file.write_text(str(writer.pid))
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_writer_ends_with_its_rank(tmp_path: Path) -> None:
    rank = multiprocessing.get_context("fork").Process(target=_start_writer_and_die, args=(tmp_path / "pid",))
    rank.start()
    rank.join()
    writer = Path("/proc") / (tmp_path / "pid").read_text()
    deadline = time.monotonic() + 10
    while writer.exists() and "\nState:\tZ" not in (writer / "status").read_text():
        assert time.monotonic() < deadline, "the writer outlived its rank"
        time.sleep(0.01)
