"""sppo plan: parallel layouts of a model on a cluster, with memory, communication and time; nothing is built.

With --check, whether one configuration fits: exit code 0 or 1, with the keys to change.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from sppo_megatron.cluster.exit_codes import exit_code_of
from sppo_megatron.config import Config
from sppo_megatron.config.compose import compose_config, config_folder
from sppo_megatron.errors import ConfigError
from sppo_megatron.rollout.registry import NAMES, check_run
from sppo_planner.cluster import GPUS, Assumptions, Cluster
from sppo_planner.fit import judge
from sppo_planner.job import Job
from sppo_planner.parameters import ParameterTable
from sppo_planner.search import find_problems, plan, search
from sppo_planner.shipped_shapes import find_architecture, shipped_models

EXIT_DOES_NOT_FIT = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the plans; returns the exit code."""
    options = _parser().parse_intermixed_args(arguments)
    return exit_code_of("planning", lambda: _check(options) if options.check else _list(options))


def _list(options: argparse.Namespace) -> int:
    from sppo_planner import tables as plan_tables

    job = _job(options)
    plans = search(job)
    if not plans:
        raise ConfigError(f"no layout of the model is valid on {options.gpus} GPUs: give another --gpus")
    if options.layout > len(plans):
        raise ConfigError(f"--layout {options.layout}: there are {len(plans)} layouts, the first is the best")
    if options.json:
        print(json.dumps(plan_tables.as_json(job, plans), indent=1))
    elif options.explain:
        plan_tables.print_explanation(plans[options.layout - 1])
    else:
        plan_tables.print_plans(plans, options.limit)
    return 0 if plans[0].fits else EXIT_DOES_NOT_FIT


def _check(options: argparse.Namespace) -> int:
    from sppo_planner import tables as plan_tables

    job = _job(options)
    problems = _config_problems(job.config, options.gpus)
    problems += find_problems(job.architecture, job.config.parallelism, options.gpus)
    problems = list(dict.fromkeys(problems))
    found, suggestions = None, []
    if not problems:
        verdict = judge(job)
        problems, suggestions = verdict.problems, verdict.suggestions
        found = plan(job, (job.config.model.recompute_granularity,))
    if options.json:
        body = plan_tables.as_json(job, [found] if found else [])
        print(json.dumps({"fits": not problems, "problems": problems, "suggestions": suggestions} | body, indent=1))
    else:
        plan_tables.print_verdict(found, problems, suggestions)
        if found is not None and options.explain:
            plan_tables.print_explanation(found)
    return EXIT_DOES_NOT_FIT if problems else 0


def _config_problems(config: Config, gpus: int) -> list[str]:
    """What the run itself would refuse before it reads anything. What it reads needs not be here: a folder that exists
    stands for it.
    """
    config, there = copy.deepcopy(config), str(config_folder())
    config.data.train_path, config.data.eval_path, config.checkpoint.load = there, None, None
    config.data.sources, config.data.eval_sources = [], []
    config.rollout.path = there
    try:
        check_run(config, gpus)
    except ConfigError as error:
        return str(error).splitlines()
    return []


def _job(options: argparse.Namespace) -> Job:
    config = compose_config([*_shortcuts(options), *options.overrides])[0]
    if not options.check and config.train.max_tokens_per_micro_batch is None and config.train.micro_batch_size == 1:
        prompt = config.data.max_prompt_length or options.prompt_length
        config.train.max_tokens_per_micro_batch = prompt + config.rollout.max_response_length
    table = ParameterTable(find_architecture(config.model.hf_path), config.model.make_vocab_size_divisible_by)
    names = [field.name for field in dataclasses.fields(Assumptions)]
    return Job(table, config, _cluster(options), Assumptions(**{name: getattr(options, name) for name in names}))


def _shortcuts(options: argparse.Namespace) -> list[str]:
    """Flags that stand for configuration keys, as overrides."""
    response = None if options.sequence_length is None else options.sequence_length - options.prompt_length
    if response is not None and response < 1:
        raise ConfigError(f"--sequence-length must be above --prompt-length={options.prompt_length}")
    values: dict[str, Any] = {
        "model.hf_path": options.model,
        "rollout.max_response_length": response,
        "train.max_tokens_per_micro_batch": options.micro_batch_tokens,
        "precision.dtype": options.dtype,
        "precision.fp8": options.fp8,
        "rollout.engine": options.engine,
        "rollout.vllm.gpu_memory_utilization": options.vllm_share,
    }
    return [f"{key}={value}" for key, value in values.items() if value is not None]


def _cluster(options: argparse.Namespace) -> Cluster:
    gpu = GPUS[options.gpu]
    given = {"memory_gib": options.gpu_memory_gib, "memory_bandwidth": options.memory_bandwidth}
    given |= {"link_bandwidth": options.link_bandwidth}
    gpu = dataclasses.replace(gpu, **{name: value for name, value in given.items() if value is not None})
    if options.peak_flops is not None:
        gpu = dataclasses.replace(gpu, peak_flops=dict.fromkeys(gpu.peak_flops, options.peak_flops))
    return Cluster(options.gpus, options.gpus_per_node, gpu, options.network_bandwidth)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sppo plan", description=str(__doc__).splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="Hydra overrides: key=value, group=option, experiment=NAME")
    parser.add_argument("--check", action="store_true", help="whether this configuration fits, with its own layout")
    parser.add_argument("--explain", action="store_true", help="the arithmetic of one layout, line by line")
    parser.add_argument("--layout", type=_positive_int, default=1, metavar="N", help="which one (default: the best)")
    parser.add_argument("--json", action="store_true", help="everything as JSON, bytes and seconds")
    parser.add_argument(
        "--limit", type=_positive_int, default=15, help="layouts that are printed (default: %(default)s)"
    )
    model = parser.add_argument_group("model and run", "short for configuration keys, which may also be given by name")
    model.add_argument("--model", help=f"a folder with config.json, a hub id, or one of {', '.join(shipped_models())}")
    model.add_argument(
        "--sequence-length", type=_positive_int, help="tokens of the longest prompt and response together"
    )
    model.add_argument("--micro-batch-tokens", type=_positive_int, help="train.max_tokens_per_micro_batch")
    model.add_argument("--dtype", choices=["fp32", "bf16", "fp16"])
    model.add_argument("--fp8", choices=["hybrid", "e4m3"])
    model.add_argument("--engine", choices=NAMES)
    model.add_argument("--vllm-share", type=float, help="rollout.vllm.gpu_memory_utilization")
    _add_cluster_arguments(parser)
    group = parser.add_argument_group("assumptions", "what is neither configured nor known")
    for field in dataclasses.fields(Assumptions):
        kind = _positive_int if isinstance(field.default, int) else _positive
        text = f"{field.metadata['help']} (default: %(default)s)"
        group.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default, help=text)
    return parser


def _add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("cluster", "--gpu takes the data sheet's numbers, the other flags replace them")
    group.add_argument("--gpus", type=_positive_int, required=True, help="of the whole job")
    group.add_argument("--gpus-per-node", type=_positive_int, default=8, help="(default: %(default)s)")
    group.add_argument("--gpu", choices=list(GPUS), default="h100", help="(default: %(default)s)")
    group.add_argument("--gpu-memory-gib", type=_positive)
    group.add_argument("--peak-flops", type=_positive, help="dense FLOP/s in the run's number format")
    group.add_argument("--memory-bandwidth", type=_positive, help="bytes/s")
    group.add_argument("--link-bandwidth", type=_positive, help="bytes/s within a node, one direction")
    group.add_argument(
        "--network-bandwidth", type=_positive, default=50e9, help="bytes/s a GPU between nodes (default: %(default)g)"
    )


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    return number


def _positive_int(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
