"""Takes models through megatron-bridge in several layouts, then through whole runs, in one set of processes.

    torchrun --nproc-per-node 2 worker.py folder

In each layout: Hugging Face weights into shards, out again, and logits: the last rank writes
folder/converted/MODEL-LAYOUT/{model.safetensors,logits.pt}. What can't be had: the messages go to folder/refused.json.
The runs are those of folder/runs.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from sppo_megatron.config import Config, ParallelismConfig, PrecisionConfig
from sppo_megatron.config.compose import compose_config
from sppo_megatron.hf.hf_config import load_hf_config
from sppo_megatron.policy.checkpoint.logits import model_logits
from sppo_megatron.policy.initialize import initialize_model_parallel, joined_job
from sppo_megatron.policy.model.bridge import BridgeModel
from sppo_megatron.rollout.registry import check_run
from sppo_megatron.train import command as train
from tests.distributed.bridge.models import CONFIGS, REFUSED
from tests.distributed.conversion.tokens import tokens

LAYOUTS = {
    "dp2": ParallelismConfig(),
    "tp2": ParallelismConfig(tensor_model_parallel_size=2, sequence_parallel=True),
    "pp2-vpp2": ParallelismConfig(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2),
}


def convert(kind: str, layout: str, folder: Path) -> None:
    run = Config(parallelism=LAYOUTS[layout], precision=PrecisionConfig(dtype="fp32"))
    groups = initialize_model_parallel(run.parallelism, seed=0)
    model = BridgeModel(folder / kind, load_hf_config(str(folder / kind)))
    config, chunks = model.build(run, groups)
    with torch.no_grad():
        for chunk in chunks:
            for parameter in chunk.parameters():
                parameter.fill_(torch.nan)  # what isn't loaded afterwards would show
    model.load_weights(chunks, groups)
    exported = dict(model.export_weights(chunks, groups))
    logits = model_logits(chunks, config, groups, model.vocab_size, tokens())
    if dist.get_rank() == dist.get_world_size() - 1:
        out = folder / "converted" / f"{kind}-{layout}"
        out.mkdir(parents=True)
        save_file(exported, out / "model.safetensors")
        torch.save(logits, out / "logits.pt")


def refusal(name: str, folder: Path) -> str:
    run = Config(parallelism=LAYOUTS["pp2-vpp2"], precision=PrecisionConfig(dtype="fp32"))
    path = folder / name.removesuffix("-scaled-logits")
    try:
        model = BridgeModel(path, load_hf_config(str(path)))
        if path.name != name:
            scale_logits(model)
        groups = initialize_model_parallel(run.parallelism, seed=0)
        model.load_weights(model.build(run, groups)[1], groups)
    except ValueError as error:
        return str(error)
    return "nothing was refused"


def scale_logits(model: BridgeModel) -> None:
    """As a provider does it that changes the output layer of the last stage; rank 0 is the first."""
    provide = model._provider.provide

    def with_another_output_layer(pre_process: bool, post_process: bool, vp_stage: int | None):
        chunk = provide(pre_process, post_process, vp_stage)
        if post_process:
            chunk.output_layer.__class__ = type("Scaled", (type(chunk.output_layer),), {})
        return chunk

    model._provider.provide = with_another_output_layer


def main() -> None:
    folder = Path(sys.argv[1])
    train.set_up_logging(rank=1)
    with joined_job(timeout_minutes=2):
        for kind in CONFIGS:
            for layout in LAYOUTS:
                convert(kind, layout, folder)
        refused = {name: refusal(name, folder) for name in REFUSED}
        if dist.get_rank() == 0:
            (folder / "refused.json").write_text(json.dumps(refused))
        for overrides in json.loads((folder / "runs.json").read_text()):
            config, composed = compose_config(overrides)
            check_run(config, dist.get_world_size())
            assert train.run(config, composed) == 0


if __name__ == "__main__":
    main()
