"""Weights by broadcast into vLLM servers, through vLLM's weight-transfer API.

Every rank has every tensor of the stream, so the servers are dealt out: rank r serves servers r, r + world, ... Each
server has a group of its own with its rank: one that dies is noticed by its rank alone and stops nobody else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import wraps
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch import Tensor

from sppo_megatron.cluster.consensus import of_all_ranks
from sppo_megatron.cluster.http_client import RequestError, ServerError, submit
from sppo_megatron.engines.fingerprint import Fingerprint, WeightCounter
from sppo_megatron.engines.vllm_servers.broadcast_link import BroadcastLink, local_address
from sppo_megatron.engines.vllm_servers.client import ServerClient
from sppo_megatron.engines.vllm_servers.transfer import ServerPool, no_server_took, worker_problem
from sppo_megatron.errors import TrainingError
from sppo_megatron.hf.export import buckets

logger = logging.getLogger(__name__)


class BroadcastTransfer:
    """bucket_bytes: how much goes at a time. timeout_s: how long a silent server is waited for. group: the ranks."""

    def __init__(
        self,
        pool: ServerPool,
        *,
        device: torch.device,
        timeout_s: float,
        bucket_bytes: int,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self._pool = pool
        self._device = device
        self._timeout_s = timeout_s
        self._bucket_bytes = bucket_bytes
        self._group = group
        self._receivers: dict[str, _Receiver] = {}  # those of this rank, by URL

    def send(self, weights: Iterator[tuple[str, Tensor]], version: int) -> Fingerprint:
        """See Transfer."""
        mine = self._pool.clients[dist.get_rank(self._group) :: dist.get_world_size(self._group)]
        receivers = [self._receiver(client) for client in mine]
        for receiver in receivers:
            receiver.begin()
        counter = WeightCounter()
        for bucket in buckets(counter.watch(weights), self._bucket_bytes):
            for receiver in receivers:
                receiver.send(bucket)
        for receiver in receivers:
            receiver.end(version, counter.fingerprint())
        self._agree({receiver.client.url: receiver.problem for receiver in receivers})
        return counter.fingerprint()

    def close(self) -> None:
        """Leaves the groups."""
        self._receivers.clear()

    def _receiver(self, client: ServerClient) -> _Receiver:
        """The link to a server, made anew after a failure."""
        known = self._receivers.get(client.url)
        if known is None or known.problem is not None:
            self._receivers[client.url] = known = _Receiver(client, self._device, self._timeout_s)
        return known

    def _agree(self, problems: dict[str, str | None]) -> None:
        """What every rank found out about its servers; from now on those without a problem are alive."""
        found = {url: problem for part in of_all_ranks(problems, self._group) for url, problem in part.items()}
        wrong = {url: problem for url, problem in found.items() if problem is not None}
        for url, problem in wrong.items():
            if url in [client.url for client in self._pool.alive]:
                logger.warning("the rollout server %s did not take the weights: %s", url, problem)
        self._pool.set_alive([url for url in found if url not in wrong])
        if not self._pool.alive:
            raise TrainingError(no_server_took(wrong))


def _while_usable(method: Callable[..., None]) -> Callable[..., None]:
    """Skips the call if the server has a problem; an error becomes its problem and concerns nobody else."""

    @wraps(method)
    def call(self: _Receiver, *args: Any) -> None:
        if self.problem is None:
            try:
                method(self, *args)
            except (ServerError, RequestError, RuntimeError, OSError) as error:
                self.problem = f"{type(error).__name__}: {error}"

    return call


class _Receiver:
    """One server during pushes. problem: why it can't be used any more; then every method does nothing."""

    def __init__(self, client: ServerClient, device: torch.device, timeout_s: float) -> None:
        self.client = client
        self.problem: str | None = None
        self._device = device
        self._timeout_s = timeout_s
        self._link: BroadcastLink | None = None
        self._update: Future[Any] | None = None

    @_while_usable
    def begin(self) -> None:
        """Stops generation, opens a session and has the server wait for the stream."""
        if self._link is None:
            self._link = self._connect()
        self.client.post("/pause?mode=abort")
        self.client.post("/start_weight_update")
        self._update = submit(self.client.call("POST", "/update_weights", {"update_info": {}}, self._timeout_s))

    @_while_usable
    def send(self, bucket: list[tuple[str, Tensor]]) -> None:
        assert self._link is not None
        self._link.send(bucket)

    @_while_usable
    def end(self, version: int, sent: Fingerprint) -> None:
        """Ends the stream, compares what the server's workers have with what was sent, and lets them generate."""
        assert self._link is not None and self._update is not None
        self._link.send([])
        self._update.result()
        self.client.post("/finish_weight_update", {"weight_version": str(version)}, self._timeout_s)
        self.client.post("/reset_prefix_cache")
        reports = self.client.post("/collective_rpc", {"method": "sppo_note", "args": [version]})["results"]
        if (problem := worker_problem(reports, version, sent)) is not None:
            raise ServerError(problem)
        self.client.post("/resume")

    def _connect(self) -> BroadcastLink:
        if not self.client.is_healthy():
            raise ServerError("it does not answer")
        parts = urlsplit(self.client.url)
        host = local_address(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
        workers = int(self.client.get("/get_world_size")["world_size"])
        port, store = BroadcastLink.listen(host, workers + 1, self._timeout_s)
        init = {"host": host, "port": port, "world_size": workers + 1, "timeout_s": self._timeout_s}
        joining = submit(self.client.call("POST", "/init_weight_transfer_engine", {"init_info": init}, self._timeout_s))
        link = BroadcastLink.open(store, host, workers + 1, self._device, self._timeout_s)
        joining.result()
        return link
