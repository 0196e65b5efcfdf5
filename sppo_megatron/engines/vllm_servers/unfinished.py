"""Samples that were finished when the last server died, kept for the run that continues."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np

from sppo_megatron.data.atomic_file import write_atomically
from sppo_megatron.engines.base import Continuation, Request
from sppo_megatron.types import SamplingParams

Kept = dict[str, list[Continuation]]


def request_key(request: Request, params: SamplingParams, weights: str) -> str:
    """A fingerprint of all that a request's samples depend on. weights: version and checksum of what they come from.

    Whoever asks for something else, after a change of data, seed, settings or weights, has another key.
    """
    settings = replace(request.limited(params), stop_token_ids=frozenset())
    parts = [weights, request.seed, request.num_samples, astuple(settings)[:-1], sorted(params.stop_token_ids)]
    digest = hashlib.sha256(json.dumps(parts).encode())
    digest.update(np.ascontiguousarray(request.token_ids, dtype=np.int32).tobytes())
    return digest.hexdigest()


class Unfinished:
    """A file of samples by the keys of their requests. Used by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Kept:
        """All that is kept; nothing if there is no file."""
        if not self.path.exists():
            return {}
        lines = (json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines())
        return {line["key"]: [_continuation(sample) for sample in line["samples"]] for line in lines}

    def add(self, kept: Mapping[str, list[Continuation]]) -> None:
        """Adds samples to the file."""
        self._write({**self.read(), **kept})

    def remove(self, keys: Iterable[str]) -> None:
        """Takes samples out; the file goes with the last of them."""
        gone = set(keys)
        self._write({key: samples for key, samples in self.read().items() if key not in gone})

    def _write(self, kept: Kept) -> None:
        if not kept:
            self.path.unlink(missing_ok=True)
            return
        lines = [json.dumps({"key": key, "samples": [_record(each) for each in kept[key]]}) for key in kept]
        write_atomically(self.path, "\n".join(lines) + "\n")


def _record(sample: Continuation) -> dict[str, Any]:
    """float32 -> float64 -> text is exact."""
    return {
        "token_ids": sample.token_ids.tolist(),
        "log_probs": sample.log_probs.tolist(),
        "finish_reason": sample.finish_reason,
        "weight_version": sample.weight_version,
    }


def _continuation(record: dict[str, Any]) -> Continuation:
    return Continuation(
        np.array(record["token_ids"], np.int32),
        np.array(record["log_probs"], np.float32),
        record["finish_reason"],
        record["weight_version"],
    )
