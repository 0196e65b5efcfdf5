"""sppo evaluate: a model's answers to held-out prompts, scored, with 95% intervals. Alone or under torchrun.

    python -m sppo_megatron.cli.evaluate model.hf_path=MODEL data.eval_path=test.jsonl reward=numeric \\
        eval.num_samples_per_prompt=8 eval.temperature=0.6 --output evaluated

MODEL is in Hugging Face format, or a run's checkpoint such as outputs/run/checkpoints/best. It takes the overrides of
sppo_megatron.train and reads those of the model, the evaluation, the reward and the rollout engine. --output gets
result.json, every answer (answers.jsonl), and what `sppo report` shows. The same command continues where it was killed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sppo_megatron.cli.offline_options import check_batch_size, offline_parser, run_offline
from sppo_megatron.cluster.garbage_collection import garbage_collection_paused
from sppo_megatron.config.compose import compose_config
from sppo_megatron.rollout.registry import check_evaluating


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluates; returns the exit code."""
    parser = offline_parser("sppo evaluate", __doc__, "prompts", to_folder=True)
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="answers of another policy, or fixed ones, to the same prompts: the win rate against them is measured "
        "(answers.jsonl of this command, evaluations/*.jsonl of a run, or any rollout file)",
    )
    options = parser.parse_intermixed_args(arguments)
    return run_offline("the evaluation", lambda world_size: _run(options, world_size))


def _run(options: argparse.Namespace, world_size: int) -> None:
    check_batch_size(options)
    config, composed = compose_config(options.overrides, extra_folder=options.config_dir)
    check_evaluating(config, world_size, has_opponents=options.against is not None)
    # the heavy part: after what can be said without it
    with garbage_collection_paused():
        from sppo_megatron.cli.offline.evaluation import Job, evaluate_model

    evaluate_model(Job(config, composed, options.output, options.overwrite, options.batch_size, options.against))


if __name__ == "__main__":
    sys.exit(main())
