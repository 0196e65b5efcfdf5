"""Weights over a disk that every server sees: safetensors written by rank 0, read by the servers' workers."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from sppo_megatron.cluster.consensus import of_first_rank
from sppo_megatron.cluster.http_client import RequestError, ServerError, wait_for
from sppo_megatron.cluster.interrupt import Interrupted, interruptible
from sppo_megatron.engines.fingerprint import Fingerprint, WeightCounter
from sppo_megatron.engines.vllm_servers.client import ServerClient
from sppo_megatron.engines.vllm_servers.transfer import ServerPool, no_server_took, worker_problem
from sppo_megatron.errors import TrainingError
from sppo_megatron.hf.save import save_weights

READ_TIMEOUT_S = 3600.0
MARKER = "written_by_sppo_megatron"


class RunFolder:
    """A run's versions of the weights, each in a folder of its own inside `folder`.

    run: what names the run. Every version's folder holds a marker file with that name, and none without it is ever
    removed: other runs may write into the same folder, and whatever else lies there stays. is_own: `folder` is a place
    of the run's own and no one the user named: it goes when it is empty.
    """

    def __init__(self, folder: Path, run: str, is_own: bool) -> None:
        self.folder = folder
        self._run = run
        self._is_own = is_own

    def make(self, version: int) -> Path:
        """An empty folder for a version. Raises FileExistsError if there is one that isn't this run's."""
        path = self.folder / f"version_{version:09d}_{hashlib.sha256(self._run.encode()).hexdigest()[:8]}"
        if path.exists() and not self._is_ours(path):
            raise FileExistsError(f"{path} is there and this run didn't make it")
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        (path / MARKER).write_text(self._run, encoding="utf-8")
        return path

    def remove(self, but: Path | None = None) -> None:
        """Removes this run's versions, those of a process that was killed too."""
        for path in self.folder.glob("version_*"):
            if path != but and self._is_ours(path):
                shutil.rmtree(path, ignore_errors=True)
        if self._is_own and self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _is_ours(self, path: Path) -> bool:
        marker = path / MARKER
        return marker.is_file() and not path.is_symlink() and marker.read_text(encoding="utf-8") == self._run


class DiskTransfer:
    """folder: absolute, seen by every server under this path. run, is_own: see RunFolder.

    write: (folder, stream of tensors) -> safetensors files in it. group: the ranks that send together.
    """

    def __init__(
        self,
        pool: ServerPool,
        folder: Path,
        *,
        run: str,
        is_own: bool = False,
        write: Callable[[Path, Iterator[tuple[str, Tensor]]], None] = save_weights,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self._pool = pool
        self._folder = RunFolder(folder, run, is_own)
        self._write = write
        self._group = group

    def send(self, weights: Iterator[tuple[str, Tensor]], version: int) -> Fingerprint:
        """See Transfer."""
        counter = WeightCounter()
        stream = counter.watch(weights)
        shared: list[Any] = [{}, None]
        if dist.get_rank(self._group) == 0:
            try:
                shared[0] = self._write_and_load(stream, counter, version)
            except OSError as error:
                shared[1] = f"the weights could not be written to {self._folder.folder}: {error}"
        for _ in stream:  # every rank has its part in the collectives of the export
            pass
        problems, failure = of_first_rank(shared, self._group)
        if problems is None:
            raise Interrupted
        self._pool.set_alive([url for url, problem in problems.items() if problem is None])
        if failure is None and not self._pool.alive:
            failure = no_server_took(problems)
        if failure is not None:
            raise TrainingError(failure)
        return counter.fingerprint()

    def close(self) -> None:
        """See Transfer."""
        if dist.get_rank(self._group) == 0:
            self._folder.remove()

    def _write_and_load(
        self, stream: Iterator[tuple[str, Tensor]], counter: WeightCounter, version: int
    ) -> dict[str, str | None] | None:
        """Each server's problem, None if it has the weights. None if the job is told to stop while they load."""
        folder = self._folder.make(version)
        self._write(folder, stream)
        sent = counter.fingerprint()
        try:
            with interruptible():
                problems = wait_for(self._load(folder, version, sent))
        except Interrupted:
            return None
        self._folder.remove(but=folder)
        return {client.url: problem for client, problem in zip(self._pool.clients, problems, strict=True)}

    async def _load(self, folder: Path, version: int, sent: Fingerprint) -> list[str | None]:
        return await asyncio.gather(*(_load(client, folder, version, sent) for client in self._pool.clients))


async def _load(client: ServerClient, folder: Path, version: int, sent: Fingerprint) -> str | None:
    """Has a server load the folder; its problem, None if every worker has what was sent."""
    body = {"method": "sppo_load_folder", "args": [str(folder), version]}
    try:
        await client.call("POST", "/pause?mode=abort")
        reports = (await client.call("POST", "/collective_rpc", body, READ_TIMEOUT_S))["results"]
        await client.call("POST", "/reset_prefix_cache")
        await client.call("POST", "/resume")
    except (ServerError, RequestError) as error:
        return str(error)
    return worker_problem(reports, version, sent)
