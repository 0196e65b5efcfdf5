"""Samples by vLLM servers: rank 0 asks them, every rank gets what they answer."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sppo_megatron.cluster.consensus import of_first_rank
from sppo_megatron.cluster.http_client import AccessError, RequestError, ServerError, wait_for
from sppo_megatron.cluster.interrupt import Interrupted, interruptible
from sppo_megatron.cluster.server_pool import NoServerLeft
from sppo_megatron.engines.base import Continuation, Engine, Request, request_seed
from sppo_megatron.engines.fingerprint import check_version
from sppo_megatron.engines.kind import Surroundings
from sppo_megatron.engines.vllm_servers.broadcast import BroadcastTransfer
from sppo_megatron.engines.vllm_servers.client import ServerClient
from sppo_megatron.engines.vllm_servers.disk import DiskTransfer
from sppo_megatron.engines.vllm_servers.server_checks import check_log_probs, check_weight_receiver
from sppo_megatron.engines.vllm_servers.transfer import ServerPool, Transfer
from sppo_megatron.engines.vllm_servers.unfinished import Kept, Unfinished, request_key
from sppo_megatron.errors import ConfigError, TrainingError
from sppo_megatron.types import SamplingParams

T = TypeVar("T")


class VllmServersEngine(Engine):
    """Each request goes to whichever server is free.

    unfinished: where samples are kept that were finished when the last server died; asked again for the same, the
    engine takes them from there. group: the ranks that call together (the world if None).
    """

    def __init__(
        self,
        pool: ServerPool,
        transfer: Transfer,
        *,
        unfinished: Unfinished | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self._pool = pool
        self._transfer = transfer
        self._unfinished = unfinished
        self._group = group
        self._weights = "as started"  # what the servers sample from: version and checksum

    def check_servers(self, params: SamplingParams, take_weights: bool = True) -> None:
        """Raises ConfigError if no server answers, or one wants another key, can't take weights or reports other
        log-probs.

        params: what will be sampled with. take_weights: whether they will be given any.
        """

        def check() -> None:
            try:
                healthy = [client for client in self._pool.clients if client.is_healthy()]
            except AccessError as error:
                raise ConfigError(str(error)) from error
            if not healthy:
                urls = ", ".join(client.url for client in self._pool.clients)
                raise ConfigError(f"no rollout server answers at {urls}: start them with `sppo serve --model ...`")
            self._pool.set_alive([client.url for client in healthy])
            for client in healthy:
                if take_weights:
                    check_weight_receiver(client)
                check_log_probs(client, params)

        self._on_first_rank(check)

    def start(self, requests: Sequence[Request], params: SamplingParams) -> _Background:
        """See Engine. Its result raises TrainingError if no server is left."""
        work = None
        if dist.get_rank(self._group) == 0:
            weights, version = self._weights, self.weight_version
            work = _Work(lambda: self._ask(requests, params, weights, version))
        return _Background(self, work)

    def load_weights(self, weights: Iterator[tuple[str, Tensor]], version: int) -> int:
        """See Engine."""
        check_version(self.weight_version, version)
        sent = self._transfer.send(weights, version)
        self.weight_version = version
        self._weights = f"version {version}, {sent}"
        return sent.num_bytes

    def probe(self, request: Request, params: SamplingParams) -> list[tuple[str, Continuation]]:
        """See Engine: every server that is alive."""
        seed, version = request_seed(request.seed), self.weight_version

        def ask() -> list[tuple[str, Continuation]]:
            found = []
            for client in self._pool.alive:
                [sample] = wait_for(client.complete(request.token_ids, seed, request.limited(params), 1))
                found.append((client.url, Continuation.of(*sample, params, version)))
            return found

        return self._on_first_rank(ask)

    def close(self) -> None:
        """See Engine; what runs in the background ends with the process."""
        self._transfer.close()

    def _ask(
        self, requests: Sequence[Request], params: SamplingParams, weights: str, version: int
    ) -> list[list[Continuation]]:
        """On rank 0 only, possibly in a thread."""
        keys = [request_key(request, params, weights) for request in requests]
        kept: Kept = {} if self._unfinished is None else self._unfinished.read()
        missing = [place for place, key in enumerate(keys) if key not in kept]

        async def call(client: ServerClient, place: int) -> list[Continuation]:
            request = requests[place]
            samples = await client.complete(
                request.token_ids, request_seed(request.seed), request.limited(params), request.num_samples
            )
            return [Continuation.of(*sample, params, version) for sample in samples]

        try:
            answers = self._pool.run(missing, call)
        except NoServerLeft as error:
            found = {keys[missing[i]]: samples for i, samples in error.answers.items()}
            raise self._stopped(error, found, len(requests) - len(missing) + len(found), len(requests)) from error
        found = dict(zip((keys[place] for place in missing), answers, strict=True))
        if self._unfinished is not None and len(missing) < len(keys):
            self._unfinished.remove(keys)
        return [found[key] if key in found else kept[key] for key in keys]

    def _stopped(self, error: NoServerLeft, found: Kept, done: int, total: int) -> TrainingError:
        where = ""
        if self._unfinished is not None and done:
            self._unfinished.add(found)
            where = f" and are kept in {self._unfinished.path}"
        return TrainingError(
            f"no rollout server is left: {error}. {done} of {total} groups were finished{where}. "
            "Start servers and continue (a training run with checkpoint.load=latest)"
        )

    def _on_first_rank(self, work: Callable[[], T]) -> T:
        """work() of rank 0, its result or its error, Interrupted too, on every rank."""
        shared: list[Any] = [None, None]
        if dist.get_rank(self._group) == 0:
            try:
                shared[0] = work()
            except (ConfigError, TrainingError, Interrupted) as error:
                shared[1] = error
            except (RequestError, ServerError) as error:
                shared[1] = TrainingError(str(error))
        shared.append([client.url for client in self._pool.alive])
        result, failure, alive = of_first_rank(shared, self._group)
        if alive != [client.url for client in self._pool.alive]:
            self._pool.set_alive(alive)
        if failure is not None:
            raise failure
        return result


class _Background:
    """See Pending: what the servers are asked while the trainer works."""

    def __init__(self, engine: VllmServersEngine, work: _Work | None) -> None:
        self._engine = engine
        self._work = work

    def result(self) -> list[list[Continuation]]:
        def wait() -> list[list[Continuation]]:
            assert self._work is not None, "rank 0 has asked"
            return self._work.result()

        return self._engine._on_first_rank(wait)


class _Work:
    """A call in a thread of its own."""

    def __init__(self, work: Callable[[], list[list[Continuation]]]) -> None:
        self._work = work
        self._result: list[list[Continuation]] | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._work()
        except Exception as error:
            self._error = error

    def result(self) -> list[list[Continuation]]:
        """Raises Interrupted if the job is told to stop before it is there."""
        if self._thread.is_alive():
            with interruptible():
                self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result


def build_engine(around: Surroundings) -> VllmServersEngine:
    """The configured servers, which answer. Raises ConfigError if they can't be used."""
    config, s = around.config, around.config.rollout.server
    api_key = os.environ.get(s.api_key_env)
    clients = [ServerClient(url, api_key=api_key, model=s.model, timeout_s=s.timeout_s) for url in s.urls]
    pool = ServerPool(clients, concurrency=s.concurrency, retries=s.retries, backoff_s=s.backoff_s)
    output = Path(config.output_dir).absolute()
    if s.weight_sync == "broadcast":
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        transfer: Transfer = BroadcastTransfer(
            pool, device=device, timeout_s=s.timeout_s, bucket_bytes=int(s.bucket_mib * 2**20)
        )
    else:
        folder = Path(s.sync_folder or output / "weights").absolute()
        transfer = DiskTransfer(pool, folder, run=str(output), is_own=s.sync_folder is None)
    unfinished = None if around.standalone else Unfinished(output / "rollouts" / "unfinished.jsonl")
    engine = VllmServersEngine(pool, transfer, unfinished=unfinished)
    r = config.rollout
    engine.check_servers(SamplingParams(1, r.temperature, r.top_p, r.top_k), take_weights=not around.standalone)
    return engine
