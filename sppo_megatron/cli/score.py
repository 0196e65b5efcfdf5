"""sppo score: rewards or preferences for the groups of a rollout file, into another one. Alone or under torchrun.

    python -m sppo_megatron.cli.score reward=judge 'reward.judge.urls=[http://127.0.0.1:8200]' \\
        --input rollouts.jsonl --output scored.jsonl

It takes the overrides of sppo_megatron.train and reads those of the reward, and model.hf_path if the file has token
ids without texts. The same command continues where it was killed, at the last batch that is whole.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sppo_megatron.cli.offline_options import offline_parser, output_of, run_offline, shard_of
from sppo_megatron.cluster.garbage_collection import garbage_collection_paused
from sppo_megatron.config.compose import compose_config
from sppo_megatron.errors import ConfigError
from sppo_megatron.rollout.registry import check_scoring


def main(arguments: Sequence[str] | None = None) -> int:
    """Scores; returns the exit code."""
    parser = offline_parser("sppo score", __doc__, "groups")
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="the rollout file to score")
    options = parser.parse_intermixed_args(arguments)
    return run_offline("scoring", lambda world_size: _run(options))


def _run(options: argparse.Namespace) -> None:
    shard = shard_of(options)
    config, _ = compose_config(["model.hf_path=''", *options.overrides], extra_folder=options.config_dir)
    check_scoring(config)
    if not options.input.is_file():
        raise ConfigError(f"--input {options.input} does not exist")
    if options.output.exists() and options.output.samefile(options.input):
        raise ConfigError(f"--output {options.output} is the input: give another file")
    # the heavy part: after what can be said without it
    with garbage_collection_paused():
        from sppo_megatron.cli.offline.scoring import score_file

    score_file(config, options.input, output_of(options, config), options.batch_size, shard)


if __name__ == "__main__":
    sys.exit(main())
