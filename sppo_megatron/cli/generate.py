"""sppo generate: K responses to every prompt of a data set, into a rollout file. Alone or under torchrun.

    python -m sppo_megatron.cli.generate model.hf_path=MODEL data.train_path=prompts.jsonl --output rollouts.jsonl \\
        rollout.num_samples_per_prompt=5

It takes the overrides of sppo_megatron.train and reads those of the model, the prompts and the rollout engine. The same
command continues where it was killed, at the last batch that is whole.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sppo_megatron.cli.offline_options import offline_parser, output_of, run_offline, shard_of
from sppo_megatron.cluster.garbage_collection import garbage_collection_paused
from sppo_megatron.config.compose import compose_config
from sppo_megatron.rollout.registry import check_generating


def main(arguments: Sequence[str] | None = None) -> int:
    """Generates; returns the exit code."""
    options = offline_parser("sppo generate", __doc__, "prompts").parse_intermixed_args(arguments)
    return run_offline("generation", lambda world_size: _run(options, world_size))


def _run(options: argparse.Namespace, world_size: int) -> None:
    shard = shard_of(options)
    config, composed = compose_config(options.overrides, extra_folder=options.config_dir)
    check_generating(config, world_size)
    # the heavy part: after what can be said without it
    with garbage_collection_paused():
        from sppo_megatron.cli.offline.generation import generate_file

    generate_file(config, composed, output_of(options, config), options.batch_size, shard)


if __name__ == "__main__":
    sys.exit(main())
