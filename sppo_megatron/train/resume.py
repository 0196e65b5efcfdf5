"""What a run that continues may change: each key's `Resume` class, applied to what its checkpoint was made with.

Learning rate, betas, ε and weight decay are always those of the present configuration (see `Checkpointer.load`).
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sppo_megatron.config import Config
from sppo_megatron.config.keys import Resume
from sppo_megatron.config.schema import all_keys
from sppo_megatron.errors import ConfigError

SETTINGS = "settings.json"  # in a checkpoint
_OF_THE_COMMAND = {"checkpoint.load", "output_dir"}  # they differ, and nothing depends on them
# Fixed paths, by what their content is known by: a folder may be moved.
_CONTENT_OF = {"model.hf_path": "model", "data.train_path": "data"}
# What the rest of an iteration that was begun is cut and gated by. It can be given as it was, unlike the objective,
# which the policy is built with; all else of an iteration is in its rollouts.
_AS_BEGUN = ("train.", "rollout.mismatch.")
_BUILT_IN = ("objective.", "precision.", "model.")


@dataclass(frozen=True)
class Change:
    """One key whose value in the checkpoint isn't the present one."""

    name: str
    before: Any
    now: Any
    resume: Resume

    def __str__(self) -> str:
        when = "from now on" if self.resume is Resume.FREE else f"from the {self.resume.value}"
        return f"{self.name}: {json.dumps(self.before)} -> {json.dumps(self.now)}, {when}"


def settings_of(composed: DictConfig, digests: dict[str, str]) -> dict[str, Any]:
    """What goes into a checkpoint. digests: of the model that the run started from and of its training prompts."""
    return {"config": OmegaConf.to_container(composed, resolve=True), "digests": digests}


def find_changes(checkpoint: Path, present: dict[str, Any]) -> list[Change]:
    """The changed keys, in the order of declaration; none if the checkpoint doesn't say what it was made with.

    present: of `settings_of`. Raises ConfigError, naming all of them, if fixed keys changed or the training data did.
    """
    try:
        saved = json.loads((checkpoint / SETTINGS).read_text())
    except FileNotFoundError:
        return []
    before, now = OmegaConf.create(saved["config"]), OmegaConf.create(present["config"])
    same = {name for name, digest in present["digests"].items() if saved["digests"].get(name, digest) == digest}
    changes = []
    for name, key in all_keys().items():
        was, is_now = (_plain(OmegaConf.select(config, name, default=key.default)) for config in (before, now))
        if was != is_now and name not in _OF_THE_COMMAND:
            moved = _CONTENT_OF.get(name) in same
            changes.append(Change(name, was, is_now, Resume.FREE if moved else key.resume))
    fixed = [change for change in changes if change.resume is Resume.FIXED]
    if fixed:
        texts = "; ".join(f"{c.name} is {json.dumps(c.before)} there and {json.dumps(c.now)} here" for c in fixed)
        raise ConfigError(
            f"the checkpoint {checkpoint} was made with other settings that a run keeps: {texts}. Set them back, or "
            "start a new run with model.hf_path at the weights of this one"
        )
    for name in present["digests"].keys() - same:
        if name.startswith("data"):
            path = f"data.train_path={present['config']['data']['train_path']}"
            which = name.replace("data/", "the data source ") if "/" in name else path
            raise ConfigError(
                f"{which} has other prompts than when the checkpoint {checkpoint} was made, so its position in them "
                "means nothing: put the file back, give a source another name, or start a new run with model.hf_path "
                "at the weights of this one"
            )
    return changes


def of_source(name: str | None) -> str:
    """What the digest of a data source's prompts is called. name: None for data.train_path."""
    return "data" if name is None else f"data/{name}"


def as_begun(config: Config, changes: list[Change], checkpoint: Path) -> Config:
    """The configuration for the rest of an iteration that the checkpoint lies in: it is finished as it was begun.

    Raises ConfigError if something changed that the policy is built with.
    """
    pending = [change for change in changes if change.resume is Resume.NEXT_ITERATION]
    refused = [change for change in pending if change.name.startswith(_BUILT_IN)]
    if refused:
        texts = "; ".join(f"{c.name} from {json.dumps(c.before)} to {json.dumps(c.now)}" for c in refused)
        raise ConfigError(
            f"the checkpoint {checkpoint} lies inside an iteration, which is finished as it was begun, and this run "
            f"changes {texts}: continue without the change to the iteration's end, or from a checkpoint made there"
        )
    begun = copy.deepcopy(config)
    for change in pending:
        if change.name.startswith(_AS_BEGUN):
            *groups, field = change.name.split(".")
            group: Any = begun
            for name in groups:
                group = getattr(group, name)
            object.__setattr__(group, field, change.before)
    return begun


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
