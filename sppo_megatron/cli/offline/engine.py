"""The configured rollout engine with the weights of model.hf_path, without a trainer beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sppo_megatron.cluster.consensus import agreed
from sppo_megatron.config import Config
from sppo_megatron.engines.base import RolloutEngine
from sppo_megatron.policy.generate.generator import Generator
from sppo_megatron.policy.initialize import destroy_model_parallel, initialize_model_parallel, local_device
from sppo_megatron.train.engines import build_replica, megatron_engine, server_engine, server_pool, vllm_engine
from sppo_megatron.train.inputs import Inputs


@contextlib.contextmanager
def standalone_engine(config: Config, inputs: Inputs) -> Iterator[RolloutEngine]:
    """No optimizer and no gradient buffers. Collective; the engine ends with the block.

    rollout.engine=megatron has the model in the configured layout; vllm reads the weights itself; vllm_server asks
    servers, which are taken to serve this very model. Raises ConfigError where the model can't be built or no server
    answers.
    """
    if config.rollout.engine == "vllm_server":
        servers = server_engine(config, inputs, server_pool(config), for_evaluation=False)
        servers.check_servers(take_weights=False)
        yield servers
        return
    replica = build_replica(config, inputs, standalone=True)
    if replica is not None:
        try:
            yield vllm_engine(config, inputs, replica, for_evaluation=False)
        finally:
            replica.close()
        return
    groups = initialize_model_parallel(config.parallelism, config.train.seed)
    try:
        transformer, chunks = agreed(lambda: inputs.model.build(config, groups))
        agreed(lambda: inputs.model.load_weights(chunks, groups))
        generator = Generator(chunks, transformer, groups, inputs.model.vocab_size, local_device())
        yield megatron_engine(config, inputs, generator, for_evaluation=False)
    finally:
        destroy_model_parallel()
