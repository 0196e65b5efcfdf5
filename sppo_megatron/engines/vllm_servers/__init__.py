"""vLLM servers, on this machine or others. Light: what is heavy is imported when the engine is built."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sppo_megatron.config import Config
from sppo_megatron.engines.base import Engine
from sppo_megatron.engines.kind import EngineKind, Surroundings


def _check(config: Config, world_size: int) -> Iterator[str]:
    urls = config.rollout.server.urls
    if not urls:
        yield (
            "rollout.engine=vllm_server needs rollout.server.urls=[http://host:port, ...]: "
            "start servers with `sppo serve --model ...`, which prints them"
        )
    for url in urls:
        if not re.fullmatch(r"https?://[^/\s]+/?", url):
            yield f"rollout.server.urls holds {url!r}: each is http://host:port, without a path"
    if len(set(urls)) < len(urls):
        yield "rollout.server.urls names a server twice"


def _build(around: Surroundings) -> Engine:
    from sppo_megatron.engines.vllm_servers.engine import build_engine

    return build_engine(around)


VLLM_SERVERS = EngineKind(
    name="vllm_server", build=_build, has_own_weights=True, in_ranks=False, works_ahead=True, check=_check
)
