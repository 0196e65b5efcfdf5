"""Every engine, by its value of rollout.engine. Light: the checks of a configuration run before torch is imported."""

from __future__ import annotations

from sppo_megatron.engines.kind import EngineKind
from sppo_megatron.engines.megatron import MEGATRON
from sppo_megatron.engines.vllm import VLLM
from sppo_megatron.engines.vllm_servers import VLLM_SERVERS

ENGINES: dict[str, EngineKind] = {kind.name: kind for kind in (MEGATRON, VLLM, VLLM_SERVERS)}
