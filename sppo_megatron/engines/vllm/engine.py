"""vLLM inside the training ranks: replicas over groups of ranks, requests split over them, weights streamed in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch.distributed as dist
from torch import Tensor

from sppo_megatron.cluster.consensus import of_all_ranks
from sppo_megatron.cluster.interrupt import Interrupted
from sppo_megatron.engines.base import Continuation, Deferred, Engine, Pending, Request
from sppo_megatron.engines.fingerprint import WeightCounter, check_version, find_difference, raise_everywhere
from sppo_megatron.engines.kind import Surroundings
from sppo_megatron.engines.vllm.replica import EngineSettings, VllmReplica
from sppo_megatron.errors import ConfigError
from sppo_megatron.types import SamplingParams


class Replica(Protocol):
    """A vLLM engine that this rank has a part of: see VllmReplica."""

    def load(self, weights: Iterator[tuple[str, Tensor]], version: int) -> dict[str, Any]: ...

    def generate(
        self, requests: Sequence[Request], params: SamplingParams
    ) -> list[list[tuple[np.ndarray, np.ndarray]]]: ...

    def sleep(self) -> None: ...

    def wake(self) -> None: ...

    def close(self) -> None: ...


class VllmEngine(Engine):
    """Ranks r·tp to (r+1)·tp of `group` (the world if None) hold replica r together.

    Awake after sampling, for more turns; asleep after `load_weights` and `probe`.
    """

    def __init__(self, replica: Replica, tensor_parallel_size: int, group: dist.ProcessGroup | None = None) -> None:
        self._replica = replica
        self._tp = tensor_parallel_size
        self._group = group
        self._replicas = dist.get_world_size(group) // tensor_parallel_size
        self._index = dist.get_rank(group) // tensor_parallel_size

    def start(self, requests: Sequence[Request], params: SamplingParams) -> Pending:
        """See Engine."""
        version = self.weight_version
        return Deferred(lambda: self._sample(requests, params, version))

    def load_weights(self, weights: Iterator[tuple[str, Tensor]], version: int) -> int:
        """See Engine. Each worker takes its shards from the stream of whole tensors."""
        check_version(self.weight_version, version)
        counter = WeightCounter()
        stream = counter.watch(weights)
        try:
            report = self._replica.load(stream, version)
            for _ in stream:  # the other ranks count on this one's part in the collectives
                pass
            problem = find_difference(report, version, counter.fingerprint())
        except Exception as error:
            for _ in stream:
                pass
            problem = f"{type(error).__name__}: {error}"
        self._replica.sleep()
        rank = dist.get_rank(self._group)
        raise_everywhere({f"rank {rank}": problem} if problem else {}, self._group)
        self.weight_version = version
        return counter.fingerprint().num_bytes

    def probe(self, request: Request, params: SamplingParams) -> list[tuple[str, Continuation]]:
        """See Engine."""
        shares = self._of_each_replica([request], params, self.weight_version)
        self._replica.sleep()
        return [(f"vLLM replica {index}", share[0][0]) for index, share in enumerate(shares)]

    def sleep(self) -> None:
        """See Engine."""
        self._replica.sleep()

    def wake(self) -> None:
        """See Engine."""
        self._replica.wake()

    def close(self) -> None:
        """See Engine."""
        self._replica.close()

    def _sample(self, requests: Sequence[Request], params: SamplingParams, version: int) -> list[list[Continuation]]:
        bounds = np.linspace(0, len(requests), self._replicas + 1).round().astype(int)
        mine = requests[bounds[self._index] : bounds[self._index + 1]]
        return [samples for share in self._of_each_replica(mine, params, version) for samples in share]

    def _of_each_replica(
        self, requests: Sequence[Request], params: SamplingParams, version: int
    ) -> list[list[list[Continuation]]]:
        """What each replica sampled for its own requests, in the replicas' order, on every rank."""
        mine: list[list[Continuation]] | None = None
        with contextlib.suppress(Interrupted):
            sampled = self._replica.generate(requests, params) if requests else []
            mine = [[Continuation.of(*sample, params, version) for sample in samples] for samples in sampled]
        shares = of_all_ranks(mine, self._group)
        if None in shares:
            raise Interrupted
        return shares[:: self._tp]  # type: ignore[return-value]


def build_engine(around: Surroundings) -> VllmEngine:
    """The configured replicas over all ranks. Raises ConfigError, the same on each, if vLLM would cut responses."""
    v, needed = around.config.rollout.vllm, around.longest_prompt + around.config.rollout.max_response_length
    if v.max_model_len is not None and v.max_model_len < needed:
        raise ConfigError(
            f"rollout.vllm.max_model_len={v.max_model_len} is less than the {needed} tokens of the longest prompt with "
            "rollout.max_response_length: responses would be cut off there; raise it, or set it to null"
        )
    settings = EngineSettings(
        folder=around.folder,
        dtype=around.config.precision.dtype,
        max_model_len=v.max_model_len or needed,
        tensor_parallel_size=v.tensor_parallel_size,
        max_num_seqs=v.max_num_seqs,
        gpu_memory_utilization=v.gpu_memory_utilization,
        kv_cache_memory_mib=v.kv_cache_memory_mib,
        enforce_eager=v.enforce_eager,
        engine_args=v.engine_args,
        standalone=around.standalone,
    )
    return VllmEngine(VllmReplica(settings, world_size=dist.get_world_size()), v.tensor_parallel_size)
