"""What a run that continues may change: every key of the configuration, by the class that it declares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from sppo_megatron.config import Config
from sppo_megatron.config.keys import Resume
from sppo_megatron.config.schema import all_keys
from sppo_megatron.errors import ConfigError
from sppo_megatron.train.resume import SETTINGS, as_begun, find_changes, settings_of

DIGESTS = {"model": "m", "data": "d"}


def settings(digests: dict[str, str] = DIGESTS, **changes: Any) -> dict[str, Any]:
    config = OmegaConf.create({})
    for name, value in {"data.train_path": "prompts.jsonl", "model.hf_path": "model", **changes}.items():
        OmegaConf.update(config, name, value, force_add=True)
    return settings_of(config, digests)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / SETTINGS).write_text(json.dumps(settings()))
    return tmp_path


@pytest.mark.parametrize("name", all_keys())
def test_every_key(checkpoint: Path, name: str) -> None:
    now = settings({"model": "other", "data": "d"}, **{name: "another value"})
    resume = all_keys()[name].resume
    if name in ("checkpoint.load", "output_dir", "data.train_path"):  # the last: the same prompts at another place
        resume = Resume.FREE
    if resume is Resume.FIXED:
        with pytest.raises(ConfigError, match=rf"{name} is .* there and \"another value\" here"):
            find_changes(checkpoint, now)
        return
    changes = find_changes(checkpoint, now)
    assert [change.name for change in changes] == ([] if name in ("checkpoint.load", "output_dir") else [name])
    assert all(change.resume is resume for change in changes)


def test_nothing_changed(checkpoint: Path) -> None:
    assert find_changes(checkpoint, settings()) == []


def test_all_fixed_keys_in_one_message(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.shuffle is true there and false here; train.seed is .* 7 here"):
        find_changes(checkpoint, settings(**{"train.seed": 7, "train.shuffle": False}))


def test_other_prompts_in_the_same_file(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.train_path=prompts.jsonl has other prompts"):
        find_changes(checkpoint, settings({"model": "m", "data": "edited"}))


def test_a_model_that_was_moved(checkpoint: Path) -> None:
    (change,) = find_changes(checkpoint, settings(**{"model.hf_path": "/elsewhere/model"}))
    assert str(change) == 'model.hf_path: "model" -> "/elsewhere/model", from now on'


def test_a_checkpoint_of_before(tmp_path: Path) -> None:
    assert find_changes(tmp_path, settings(**{"train.seed": 7})) == []


def test_an_iteration_is_finished_as_it_was_begun(checkpoint: Path) -> None:
    default = Config().train.minibatch_size
    changes = find_changes(checkpoint, settings(**{"train.minibatch_size": 7, "optimizer.lr": 1.0}))
    config = Config()
    config.train.minibatch_size, config.optimizer.lr = 7, 1.0
    begun = as_begun(config, changes, checkpoint)
    assert (begun.train.minibatch_size, begun.optimizer.lr) == (default, 1.0)
    assert config.train.minibatch_size == 7


def test_an_objective_changes_between_iterations_alone(checkpoint: Path) -> None:
    changes = find_changes(checkpoint, settings(**{"objective.eta": 3.0}))
    with pytest.raises(ConfigError, match=r"lies inside an iteration.*objective.eta from .* to 3.0"):
        as_begun(Config(), changes, checkpoint)
