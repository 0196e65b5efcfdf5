"""What `sppo verify` does. What it imports is heavy: sppo_megatron.cli.verify is the command."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from sppo_megatron.cli.options import check_target, parallelism_of
from sppo_megatron.cluster.consensus import agreed, of_all_ranks, of_first_rank
from sppo_megatron.cluster.failure_report import failures_reported
from sppo_megatron.config import ParallelismConfig
from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.hf_model import HFModel, open_hf_model, open_weights
from sppo_megatron.hf.load import check_tensors
from sppo_megatron.hf.mapping import parameter_layouts
from sppo_megatron.hf.model_class import model_class
from sppo_megatron.hf.safetensors_writer import raw_bytes
from sppo_megatron.policy.checkpoint.logits import checkpoint_logits
from sppo_megatron.policy.checkpoint.weights import StoredWeights
from sppo_megatron.policy.checkpoint.weights_table import WeightsTable
from sppo_megatron.policy.initialize import destroy_model_parallel, initialize_distributed
from sppo_megatron.train.tracking.console import counting


def compare(options: argparse.Namespace) -> list[str]:
    """What differs between the two models, the same on every rank; logits are compared if the tensors agree.

    Raises ConfigError if one of them can't be read, or can't be cut into the given layout.
    """
    initialize_distributed(timeout_minutes=30)
    try:
        with failures_reported():
            model = agreed(lambda: open_hf_model(options.hf_path))
            parallelism, architecture = parallelism_of(options), agreed(lambda: model.architecture)
            check_target(parallelism, architecture.layout_sizes(), dist.get_world_size())
            problems = _compare_tensors(model, options.megatron_path)
            if not options.skip_logits and not problems:
                problems = _compare_logits(model, options, parallelism)
            return problems
    finally:
        destroy_model_parallel()


# ---------------------------------------------------------------------------------------------- tensors


def _compare_tensors(model: HFModel, megatron_path: Path) -> list[str]:
    """What differs, the same on every rank, each of which compares its share."""
    architecture = model.architecture
    layouts = parameter_layouts(architecture, architecture.vocab_size)
    tensors = agreed(lambda: open_weights(model.folder, architecture))
    agreed(lambda: check_tensors(layouts, tensors))
    stored = agreed(lambda: StoredWeights(megatron_path, WeightsTable(architecture, architecture.vocab_size)))
    mine = list(layouts)[dist.get_rank() :: dist.get_world_size()]
    problems: list[str] = []
    with counting("parameter", len(mine)) as advance:
        for name in mine:
            found = layouts[name].unshard([stored.read(name)])
            for hf_name, tensor in zip(layouts[name].hf_names, found, strict=True):
                problems += _difference(hf_name, tensors.source(hf_name)[:], tensor)
            advance()
    of_ranks = of_all_ranks(problems)
    if dist.get_rank() == 0:
        print(f"compared {sum(len(layout.hf_names) for layout in layouts.values())} tensors by checksum")
    return [problem for of_rank in of_ranks for problem in of_rank]


def _difference(name: str, expected: Tensor, found: Tensor) -> Iterator[str]:
    if expected.dtype != found.dtype:
        yield f"{name}: {expected.dtype} in Hugging Face format, {found.dtype} in the checkpoint"
    elif _checksum(expected) != _checksum(found):
        worst = (expected.double() - found.double()).abs().max().item()
        yield f"{name}: sha256 {_checksum(expected)[:12]} and {_checksum(found)[:12]}, largest difference {worst:.3g}"


def _checksum(tensor: Tensor) -> str:
    """sha256 of a tensor's bytes."""
    return hashlib.sha256(raw_bytes(tensor)).hexdigest()


# ---------------------------------------------------------------------------------------------- logits


def _compare_logits(model: HFModel, options: argparse.Namespace, parallelism: ParallelismConfig) -> list[str]:
    """Both models in fp32, one after the other, on the same tokens. Every rank gets rank 0's verdict."""
    tokens = torch.tensor([agreed(lambda: _token_ids(model, options))])
    padded = model.architecture.padded_vocab_size(
        options.make_vocab_size_divisible_by, parallelism.tensor_model_parallel_size
    )
    found = checkpoint_logits(options.megatron_path, model.architecture, padded, parallelism, tokens)
    problems: list[str] = []
    if dist.get_rank() == 0:
        expected = _hf_logits(model, tokens)
        error = ((found - expected).abs().max() / expected.abs().max()).item()
        print(f"logits of {tokens.shape[1]} tokens: largest difference {error:.2g} of the largest logit")
        if not error <= options.tolerance:
            problems = [f"logits: {error:.3g} of the largest, above {options.tolerance:g}"]
    return of_first_rank(problems)


def _token_ids(model: HFModel, options: argparse.Namespace) -> list[int]:
    vocab_size = model.architecture.vocab_size
    if options.text is not None:
        if model.tokenizer is None:
            raise ConfigError(f"--text needs a tokenizer, and {model.folder} has none: give --token-ids")
        ids = list(model.tokenizer(options.text)["input_ids"])
    elif options.token_ids is not None:
        ids = [int(number) for number in options.token_ids.split(",")]
    else:
        ids = torch.randint(vocab_size, (32,), generator=torch.Generator().manual_seed(0)).tolist()
    if not ids or not all(0 <= token < vocab_size for token in ids):
        raise ConfigError(f"the tokens to compare logits on must be some, below {vocab_size}: {ids}")
    return ids


def _hf_logits(model: HFModel, tokens: Tensor) -> Tensor:
    cls = model_class(model.hf_config.model_type)
    reference = cls.from_pretrained(model.folder, config=model.hf_config, dtype=torch.float32).eval()
    with torch.no_grad():
        return reference(tokens).logits
