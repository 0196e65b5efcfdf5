"""Compares a Megatron-Core torch_dist checkpoint with the Hugging Face model it should hold: tensors, then logits.

Ends with 0 where every tensor has the same bytes and the logits agree, with 1 where not, naming the tensors. Under
torchrun the ranks share the tensors among them, and the logits are those of the layout that is given.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppo_megatron.cli.options import (
    EXIT_DIFFERENT,
    add_layout_arguments,
    check_target,
    parallelism_of,
    progress,
    run_command,
)

if TYPE_CHECKING:
    from torch import Tensor

    from sppo_megatron.hf.hf_model import HFModel


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="verify_checkpoint", description=str(__doc__).splitlines()[0])
    parser.add_argument("--hf-path", required=True, help="a folder in Hugging Face format, or a hub id")
    parser.add_argument("--megatron-path", type=Path, required=True, help="the folder with metadata.json")
    parser.add_argument("--text", help="what the logits are compared on; needs a tokenizer")
    parser.add_argument("--token-ids", help="the same as comma-separated numbers; without both, 32 random tokens")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="of fp32 logits, relative to the largest one")
    parser.add_argument("--skip-logits", action="store_true", help="tensors only: no model is built")
    add_layout_arguments(parser)
    options = parser.parse_args(arguments)
    return run_command(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    import torch.distributed as dist

    from sppo_megatron.hf.hf_model import open_hf_model
    from sppo_megatron.policy.initialize import destroy_model_parallel, initialize_distributed

    # Transformer Engine multiplies fp32 in TF32, whose 10 bits are above the tolerance. Read when cuBLAS starts.
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    initialize_distributed(timeout_minutes=30)
    try:
        model = open_hf_model(options.hf_path)
        parallelism = parallelism_of(options)
        check_target(parallelism, model.architecture.layout_sizes(), dist.get_world_size())
        problems = _compare_tensors(model, options.megatron_path)
        if not options.skip_logits and not problems:
            problems = _compare_logits(model, options, parallelism)
        if dist.get_rank() == 0:
            for problem in problems:
                print(f"DIFFERENT {problem}")
            print(f"{len(problems)} differences" if problems else "the checkpoint holds the same model")
        return EXIT_DIFFERENT if problems else 0
    finally:
        destroy_model_parallel()


# ---------------------------------------------------------------------------------------------- tensors


def _compare_tensors(model: HFModel, megatron_path: Path) -> list[str]:
    """What differs, the same on every rank, each of which compares its share."""
    import torch.distributed as dist

    from sppo_megatron.hf.hf_model import open_weights
    from sppo_megatron.hf.load import check_names_and_shapes
    from sppo_megatron.hf.mapping import parameter_layouts
    from sppo_megatron.policy.checkpoint.weights import StoredWeights
    from sppo_megatron.policy.checkpoint.weights_table import WeightsTable

    architecture = model.architecture
    layouts = parameter_layouts(architecture, architecture.vocab_size)
    tensors = open_weights(model.folder, architecture.family)
    check_names_and_shapes(layouts, tensors.shapes())
    stored = StoredWeights(megatron_path, WeightsTable(architecture, architecture.vocab_size))
    mine = list(layouts)[dist.get_rank() :: dist.get_world_size()]
    problems: list[str] = []
    with progress("comparing tensors", len(mine)) as advance:
        for name in mine:
            found = layouts[name].unshard([stored.read(name)])
            for hf_name, tensor in zip(layouts[name].hf_names, found, strict=True):
                problems += _difference(hf_name, tensors.source(hf_name)[:], tensor)
            advance()
    of_ranks: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(of_ranks, problems)
    if dist.get_rank() == 0:
        print(f"compared {sum(len(layout.hf_names) for layout in layouts.values())} tensors by checksum")
    return [problem for of_rank in of_ranks for problem in of_rank]


def _difference(name: str, expected: Tensor, found: Tensor) -> Iterator[str]:
    if expected.dtype != found.dtype:
        yield f"{name}: {expected.dtype} in Hugging Face format, {found.dtype} in the checkpoint"
    elif checksum(expected) != checksum(found):
        worst = (expected.double() - found.double()).abs().max().item()
        yield f"{name}: sha256 {checksum(expected)[:12]} and {checksum(found)[:12]}, largest difference {worst:.3g}"


def checksum(tensor: Tensor) -> str:
    """sha256 of a tensor's bytes."""
    from sppo_megatron.hf.safetensors_writer import raw_bytes

    return hashlib.sha256(raw_bytes(tensor)).hexdigest()


# ---------------------------------------------------------------------------------------------- logits


def _compare_logits(model: HFModel, options: argparse.Namespace, parallelism: Any) -> list[str]:
    """Both models in fp32, one after the other, on the same tokens. Every rank gets rank 0's verdict."""
    import torch
    import torch.distributed as dist

    from sppo_megatron.policy.checkpoint.logits import checkpoint_logits

    tokens = torch.tensor([_token_ids(model, options)])
    padded = model.architecture.padded_vocab_size(
        options.make_vocab_size_divisible_by, parallelism.tensor_model_parallel_size
    )
    found = checkpoint_logits(options.megatron_path, model.architecture, padded, parallelism, tokens)
    problems: list = [[]]
    if dist.get_rank() == 0:
        expected = _hf_logits(model, tokens)
        error = ((found - expected).abs().max() / expected.abs().max()).item()
        print(f"logits of {tokens.shape[1]} tokens: largest difference {error:.2g} of the largest logit")
        if not error <= options.tolerance:
            problems = [[f"logits: {error:.3g} of the largest, above {options.tolerance:g}"]]
    dist.broadcast_object_list(problems)
    return problems[0]


def _token_ids(model: HFModel, options: argparse.Namespace) -> list[int]:
    import torch

    vocab_size = model.architecture.vocab_size
    if options.text is not None:
        if model.tokenizer is None:
            raise ValueError(f"--text needs a tokenizer, and {model.folder} has none: give --token-ids")
        ids = list(model.tokenizer(options.text)["input_ids"])
    elif options.token_ids is not None:
        ids = [int(number) for number in options.token_ids.split(",")]
    else:
        ids = torch.randint(vocab_size, (32,), generator=torch.Generator().manual_seed(0)).tolist()
    if not ids or not all(0 <= token < vocab_size for token in ids):
        raise ValueError(f"the tokens to compare logits on must be some, below {vocab_size}: {ids}")
    return ids


def _hf_logits(model: HFModel, tokens: Tensor) -> Tensor:
    import torch
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return reference(tokens).logits


if __name__ == "__main__":
    sys.exit(main())
