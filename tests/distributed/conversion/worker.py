"""Takes models through layouts in one set of processes.

    torchrun --nproc-per-node N worker.py folder

In each layout: Hugging Face weights into shards, and out again; the converted checkpoint into shards by Megatron-Core's
own loading, and out again; logits. Rank 0 writes folder/out/CASE/{direct,stored}.safetensors and logits.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from sppo_megatron.config import ModelConfig, ParallelismConfig, PrecisionConfig
from sppo_megatron.conversion.export import stream_hf_tensors
from sppo_megatron.conversion.hf_model import open_hf_model, open_weights
from sppo_megatron.conversion.load import load_parameters
from sppo_megatron.conversion.mapping import parameter_layouts
from sppo_megatron.policy.checkpoint_logits import checkpoint_logits, load_weights
from sppo_megatron.policy.initialize import (
    destroy_model_parallel,
    initialize_distributed,
    initialize_model_parallel,
)
from sppo_megatron.policy.model import build_chunks, named_parameters, transformer_config
from tests.distributed.conversion.cases import CASES, Case
from tests.distributed.conversion.tokens import tokens

DIVISIBLE_BY = 4


def run(case: Case, folder: Path) -> None:
    model = open_hf_model(str(folder / "hf" / case.model))
    architecture = model.architecture
    tensors = open_weights(model.folder, architecture.family)
    sizes = ParallelismConfig(**case.parallelism, sequence_parallel="tensor_model_parallel_size" in case.parallelism)
    dtype = "bf16" if "bf16" in case.model else "fp32"
    padded = architecture.padded_vocab_size(DIVISIBLE_BY, sizes.tensor_model_parallel_size)
    layouts = parameter_layouts(architecture, padded)

    groups = initialize_model_parallel(sizes, seed=0)
    config = transformer_config(architecture, ModelConfig(), sizes, PrecisionConfig(dtype=dtype))
    chunks = build_chunks(architecture, config, padded, groups)

    def export() -> dict[str, torch.Tensor]:
        return dict(
            stream_hf_tensors(
                dict(named_parameters(chunks)),
                layouts,
                tp_group=groups.tp,
                pp_group=groups.pp,
                device=torch.device("cpu"),
                ep_group=groups.ep,
                expert_tp_group=groups.expt_tp,
            )
        )

    with torch.no_grad():
        for _, parameter in named_parameters(chunks):
            parameter.fill_(torch.nan)
    expert_tp = (groups.expt_tp.rank(), groups.expt_tp.size())
    tp_rank, tp_size = groups.tp.rank(), groups.tp.size()
    load_parameters(named_parameters(chunks), layouts, tensors, tp_rank=tp_rank, tp_size=tp_size, expert_tp=expert_tp)
    direct = export()
    with torch.no_grad():
        for _, parameter in named_parameters(chunks):
            parameter.fill_(torch.nan)
    load_weights(chunks, groups, folder / "megatron" / case.model)
    stored = export()
    logits = checkpoint_logits(folder / "megatron" / case.model, architecture, padded, sizes, tokens())
    if dist.get_rank() == dist.get_world_size() - 1:  # a rank of the last stage: what it has came over the pipeline
        out = folder / "out" / case.name
        out.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in direct.items()}, out / "direct.safetensors")
        save_file({name: tensor.contiguous() for name, tensor in stored.items()}, out / "stored.safetensors")
        torch.save(logits, out / "logits.pt")


def main() -> None:
    initialize_distributed(timeout_minutes=2)
    for case in CASES:
        if case.world_size == dist.get_world_size():
            run(case, Path(sys.argv[1]))
    destroy_model_parallel()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
