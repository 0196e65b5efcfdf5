"""vLLM servers, on this machine or others. Light: what is heavy is imported when the engine is built."""

from __future__ import annotations

from collections.abc import Iterator

from sppo_megatron.config import Config
from sppo_megatron.config.urls import url_problems
from sppo_megatron.engines.base import Engine
from sppo_megatron.engines.kind import EngineKind, Surroundings


def _check(config: Config, world_size: int) -> Iterator[str]:
    urls = config.rollout.server.urls
    if not urls:
        yield (
            "rollout.engine=vllm_server needs rollout.server.urls=[http://host:port, ...]: "
            "start servers with `sppo serve --model ...`, which prints them"
        )
    yield from url_problems(urls, "rollout.server")


def _build(around: Surroundings) -> Engine:
    from sppo_megatron.engines.vllm_servers.engine import build_engine

    return build_engine(around)


VLLM_SERVERS = EngineKind(
    name="vllm_server", build=_build, has_own_weights=True, in_ranks=False, works_ahead=True, check=_check
)
