"""Checkpoints of a stranger: whatever part of them would run code, nothing of it runs."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader

from sppo_megatron.config import Config, OptimizerConfig, PrecisionConfig
from sppo_megatron.errors import ConfigError
from sppo_megatron.policy.checkpoint.logits import load_weights
from sppo_megatron.policy.checkpoint.training import WEIGHTS, Checkpointer
from sppo_megatron.policy.checkpoint.untrusted import TABLE, nothing_executed
from sppo_megatron.policy.checkpoint.weights import StoredWeights
from sppo_megatron.policy.policy import Policy
from tests.malicious import Touch
from tests.tiny_policy import frozen, random_batch, tiny_policy


@pytest.fixture(scope="module")
def policy() -> Iterator[Policy]:
    run = Config(
        precision=PrecisionConfig(dtype="fp32"), optimizer=OptimizerConfig(use_distributed_optimizer=False, lr=1e-3)
    )
    with tiny_policy(run, num_hidden_layers=1) as policy:
        batch = frozen(random_batch(4), policy)
        policy.train_step(batch, batch.minibatches[0])
        yield policy


@pytest.fixture
def checkpoint(policy: Policy, tmp_path: Path) -> Path:
    checkpointer(policy, tmp_path).save(1, lambda folder: None)
    return tmp_path / "step_00000001"


def checkpointer(policy: Policy, folder: Path) -> Checkpointer:
    return Checkpointer(policy, folder, keep_last=1, async_save=False)


def poison_table(folder: Path, marker: Path) -> None:
    """The right table, with one thing more in it."""
    path = folder / TABLE
    table = pickle.loads(path.read_bytes())
    table.planner_data = Touch(marker)
    path.write_bytes(pickle.dumps(table))


def test_a_checkpoint_of_ours_is_read(policy: Policy, checkpoint: Path) -> None:
    checkpointer(policy, checkpoint.parent).load(checkpoint)
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_the_table_of_tensors(policy: Policy, checkpoint: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    poison_table(checkpoint / WEIGHTS, marker)
    with pytest.raises(ConfigError, match=r"is no checkpoint that this program wrote.*it names pathlib.*touch|getattr"):
        checkpointer(policy, tmp_path).load(checkpoint)
    with pytest.raises(ConfigError, match="is no checkpoint that this program wrote"):
        load_weights(policy.chunks, policy.groups, checkpoint / WEIGHTS)
    with pytest.raises(ConfigError, match="is no checkpoint that this program wrote"):
        StoredWeights(checkpoint / WEIGHTS, None)
    assert not marker.exists()
    FileSystemReader(checkpoint / WEIGHTS).read_metadata()
    assert marker.exists(), "the file would have done nothing anyway"


def test_what_is_no_tensor(policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The schedule's state, which lies among the tensors as a pickle."""
    marker = tmp_path / "marker"
    with monkeypatch.context() as patch:
        patch.setattr(policy.scheduler, "state_dict", lambda: {"num_steps": Touch(marker)})
        checkpointer(policy, tmp_path).save(1, lambda folder: None)
    marker.unlink(missing_ok=True)  # Megatron compares what ranks save by sending it around
    with pytest.raises(ConfigError, match=r"what isn't a tensor in it would be run to be read"):
        checkpointer(policy, tmp_path).load(tmp_path / "step_00000001")
    assert not marker.exists()


def test_common_state_in_a_file_of_its_own(policy: Policy, checkpoint: Path, tmp_path: Path) -> None:
    """As older versions wrote it."""
    marker = tmp_path / "marker"
    torch.save({"scheduler": Touch(marker)}, checkpoint / WEIGHTS / "common.pt")
    with pytest.raises(ConfigError, match=r"what isn't a tensor in it would be run to be read"):
        checkpointer(policy, tmp_path).load(checkpoint)
    assert not marker.exists()
    torch.load(checkpoint / WEIGHTS / "common.pt", weights_only=False)
    assert marker.exists(), "the file would have done nothing anyway"


@pytest.mark.parametrize(
    "named",
    [b"cos\nsystem", b"cbuiltins\neval", b"ctorch\nload", b"ctorch.distributed.checkpoint.metadata\nos.system"],
)
def test_only_the_classes_of_a_table_are_known(tmp_path: Path, named: bytes) -> None:
    for call in (b"%s\n(V%s\ntR.", b"\x80\x04%s\n(V%s\ntR."):
        (tmp_path / TABLE).write_bytes(call % (named, f"touch {tmp_path}/marker".encode()))
        with pytest.raises(ConfigError, match="is no checkpoint"), nothing_executed(tmp_path):
            pytest.fail("it was let through")
    assert not (tmp_path / "marker").exists()


def test_other_failures_pass(tmp_path: Path) -> None:
    (tmp_path / TABLE).write_bytes(pickle.dumps(torch.Size([3])))
    with pytest.raises(OSError, match="a disk"), nothing_executed(tmp_path):
        raise OSError("a disk")
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
