"""Weight sync over a disk that every server sees: safetensors written by rank 0, read by the servers' workers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from sppo_megatron.cluster.http_client import RequestError, ServerError
from sppo_megatron.engines.fingerprint import Fingerprint, WeightCounter
from sppo_megatron.engines.version import check_version, find_difference
from sppo_megatron.engines.vllm_servers.client import ServerClient
from sppo_megatron.engines.vllm_servers.pool import ServerPool
from sppo_megatron.errors import TrainingError

READ_TIMEOUT_S = 3600.0


class DiskSync:
    """folder: absolute, one sub-folder for each version; the one before is removed when every server has the new one.

    write: (folder, stream of tensors) -> safetensors files in it. group: the ranks that push together.
    """

    def __init__(
        self,
        pool: ServerPool,
        folder: Path,
        write: Callable[[Path, Iterator[tuple[str, Tensor]]], None],
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.version = -1
        self._pool = pool
        self._folder = folder
        self._write = write
        self._group = group

    def push(self, weights: Iterator[tuple[str, Tensor]], version: int) -> int:
        """See WeightSync. Servers that fail are taken out; those that answer again come back with these weights."""
        check_version(self.version, version)
        counter = WeightCounter()
        stream = counter.watch(weights)
        shared: list[Any] = [{}, None]
        if dist.get_rank(self._group) == 0:
            try:
                shared[0] = self._write_and_load(stream, counter, version)
            except OSError as error:
                shared[1] = f"the weights could not be written to {self._folder}: {error}"
        for _ in stream:  # every rank has its part in the collectives of the export
            pass
        dist.broadcast_object_list(shared, group=self._group, group_src=0)
        problems, failure = shared
        self._pool.set_alive([url for url, problem in problems.items() if problem is None])
        if failure is None and not self._pool.alive:
            failure = "no rollout server took the policy's weights: " + "; ".join(
                f"{u}: {p}" for u, p in problems.items()
            )
        if failure is not None:
            raise TrainingError(failure)
        self.version = self._pool.version = version
        return counter.fingerprint().num_bytes

    def close(self) -> None:
        """Removes the weights of the last push."""
        if dist.get_rank(self._group) == 0:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _write_and_load(
        self, stream: Iterator[tuple[str, Tensor]], counter: WeightCounter, version: int
    ) -> dict[str, str | None]:
        """Each server's problem, None where it has the weights."""
        folder = self._folder / f"version_{version:09d}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._write(folder, stream)
        sent = counter.fingerprint()
        with ThreadPoolExecutor(max_workers=len(self._pool.clients)) as threads:
            problems = list(threads.map(lambda client: _load(client, folder, version, sent), self._pool.clients))
        for old in self._folder.glob("version_*"):
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)
        return {client.url: problem for client, problem in zip(self._pool.clients, problems, strict=True)}


def _load(client: ServerClient, folder: Path, version: int, sent: Fingerprint) -> str | None:
    """Has a server load the folder; its problem, None where every worker has what was sent."""
    body = {"method": "sppo_load_folder", "args": [str(folder), version]}
    try:
        client.post("/pause?mode=abort")
        reports = client.post("/collective_rpc", body, READ_TIMEOUT_S)["results"]
        client.post("/reset_prefix_cache")
        client.post("/resume")
    except (ServerError, RequestError) as error:
        return str(error)
    differences = [find_difference(report, version, sent) for report in reports]
    return next((f"worker {i}: {text}" for i, text in enumerate(differences) if text is not None), None)
