"""The rollout servers, and which weights they have."""

from __future__ import annotations

from collections.abc import Sequence

from sppo_megatron.cluster.server_pool import Pool
from sppo_megatron.engines.vllm_servers.client import ServerClient


class ServerPool(Pool[ServerClient]):
    """version: of the weights that the servers alive have, -1 before the first push. Else as `Pool`."""

    def __init__(self, clients: Sequence[ServerClient], *, concurrency: int, retries: int, backoff_s: float) -> None:
        super().__init__(clients, concurrency=concurrency, retries=retries, backoff_s=backoff_s)
        self.version = -1
