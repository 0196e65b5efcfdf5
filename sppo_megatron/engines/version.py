"""Whether a replica has the weights that were sent to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch.distributed as dist

from sppo_megatron.engines.fingerprint import Fingerprint
from sppo_megatron.errors import TrainingError


def check_version(current: int, version: int) -> None:
    """Raises ValueError where weights would go back in time."""
    if version < current:
        raise ValueError(f"weights of version {version} are older than version {current}")


def find_difference(report: Mapping[str, Any] | None, version: int, sent: Fingerprint) -> str | None:
    """What a worker reports against what was sent; None where it is the same.

    report: version, tensors, num_bytes and checksum of what the worker loaded last; None where it never loaded any.
    """
    if report is None:
        return "it never received weights"
    expected = {"version": version, **asdict(sent)}
    differing = [key for key, value in expected.items() if report.get(key) != value]
    if not differing:
        return None
    return "it has " + ", ".join(f"{key} {report.get(key)} and not {expected[key]}" for key in differing)


def raise_everywhere(problems: Mapping[str, str], group: dist.ProcessGroup | None = None) -> None:
    """Raises TrainingError on every rank where any rank has a problem. problems: replica -> what is wrong."""
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, dict(problems), group=group)
    found = {replica: problem for part in everyone for replica, problem in part.items()}
    if found:
        raise TrainingError(
            "the policy's weights did not arrive: " + "; ".join(f"{name}: {text}" for name, text in found.items())
        )
