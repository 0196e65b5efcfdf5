"""The configured rollout engine with the weights of model.hf_path, without a trainer beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sppo_megatron.cluster.consensus import agreed
from sppo_megatron.config import Config
from sppo_megatron.policy.generate.generator import Generator
from sppo_megatron.policy.initialize import destroy_model_parallel, initialize_model_parallel, local_device
from sppo_megatron.rollout.collector import Collector
from sppo_megatron.train.inputs import Inputs
from sppo_megatron.train.rollouts import build_collector, build_engine


@contextlib.contextmanager
def standalone_collector(config: Config, inputs: Inputs, for_evaluation: bool) -> Iterator[Collector]:
    """No optimizer and no gradient buffers. Collective; the engine ends with the block.

    An engine without weights of its own has the model in the configured layout, built at the first samples. Servers are
    taken to serve this very model. Raises ConfigError if the model can't be built or no server answers.
    """
    with contextlib.ExitStack() as stack:

        def generator() -> Generator:
            stack.callback(destroy_model_parallel)
            groups = initialize_model_parallel(config.parallelism, config.train.seed)
            transformer, chunks = agreed(lambda: inputs.model.build(config, groups))
            agreed(lambda: inputs.model.load_weights(chunks, groups))
            return Generator(chunks, transformer, groups, inputs.model.vocab_size, local_device())

        engine = build_engine(config, inputs, generator, standalone=True)
        stack.callback(engine.close)
        yield build_collector(config, inputs, engine, for_evaluation)
