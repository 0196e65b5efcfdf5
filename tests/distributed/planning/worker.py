"""Builds the policy of every case, trains one step, and writes what each rank allocated.

    torchrun --nproc-per-node N worker.py runs.json

runs.json: [[name, [override, ...]], ...]. Beside it, measured-N.json: {name: [measurement of each rank, ...]}, bytes.
"""

from __future__ import annotations

import gc
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from sppo_megatron.batch.sequences import make_sequences
from sppo_megatron.batch.training_batch import TrainingBatch, regression_columns, single_units
from sppo_megatron.config import Config
from sppo_megatron.config.compose import compose_config
from sppo_megatron.hf.hf_checkpoint import RandomTensors
from sppo_megatron.hf.hf_config import load_hf_config, read_architecture
from sppo_megatron.hf.mapping import hf_shapes, parameter_layouts
from sppo_megatron.policy.initialize import destroy_model_parallel, initialize_distributed, initialize_model_parallel
from sppo_megatron.policy.model.mapped import MappedModel
from sppo_megatron.policy.policy import Policy
from sppo_megatron.train import command as train

PROMPT, RESPONSE, MICRO_BATCHES = 17, 48, 4  # 64 tokens are fed: the last response token predicts nothing


class SavedTensors:
    """The storages that autograd keeps for the backward pass, their bytes now and at the peak.

    Parameters are not counted: they are there anyway.
    """

    def __init__(self, parameters: Iterator[torch.nn.Parameter]):
        self._resident = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        self._holders: Counter[int] = Counter()
        self.now = self.peak = 0

    def pack(self, tensor: torch.Tensor) -> Any:
        storage = tensor.untyped_storage()
        return tensor if storage.data_ptr() in self._resident else _Held(tensor, storage.nbytes(), self)

    def unpack(self, packed: Any) -> torch.Tensor:
        return packed.tensor if isinstance(packed, _Held) else packed

    def add(self, pointer: int, size: int) -> None:
        self._holders[pointer] += 1
        if self._holders[pointer] == 1:
            self.now += size
            self.peak = max(self.peak, self.now)

    def drop(self, pointer: int, size: int) -> None:
        self._holders[pointer] -= 1
        if self._holders[pointer] == 0:
            self.now -= size


class _Held:
    """Lives as long as autograd needs the tensor."""

    def __init__(self, tensor: torch.Tensor, size: int, saved: SavedTensors):
        self.tensor, self._size, self._saved = tensor, size, saved
        saved.add(tensor.untyped_storage().data_ptr(), size)

    def __del__(self) -> None:
        self._saved.drop(self.tensor.untyped_storage().data_ptr(), self._size)


def build_policy(config: Config) -> Policy:
    architecture = read_architecture(load_hf_config(config.model.hf_path))
    groups = initialize_model_parallel(config.parallelism, seed=0)
    shapes = hf_shapes(parameter_layouts(architecture, architecture.vocab_size))
    tensors = RandomTensors(shapes, architecture.initializer_range, 0)
    model = MappedModel(architecture, tensors, config.model.make_vocab_size_divisible_by)
    return Policy(config, model, groups, 10)


def make_batch(replicas: int, vocab_size: int) -> TrainingBatch:
    random = np.random.default_rng(0)
    count = MICRO_BATCHES * replicas
    prompts, responses = (list(random.integers(0, vocab_size, (count, length))) for length in (PROMPT, RESPONSE))
    sequences = make_sequences(prompts, responses)
    return TrainingBatch(sequences, np.full(sequences.total, -3, np.float32), regression_columns(np.ones(count)))


def measure(config: Config) -> dict[str, Any]:
    policy = build_policy(config)
    parameters = [parameter for chunk in policy.chunks for parameter in chunk.parameters()]
    saved = SavedTensors(iter(parameters))
    batch = make_batch(policy.groups.dp.size(), policy.model.vocab_size)
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack):
        policy.train_step(batch, single_units(len(batch.sequences)))
    groups = policy.groups
    result = {
        "weights": storage_bytes(parameters),
        "gradients": storage_bytes([parameter.main_grad for parameter in parameters]),
        "optimizer": storage_bytes(list(optimizer_tensors(policy, parameters))),
        "activations": saved.peak,
        "rank": {
            "stage": groups.pp.rank(),
            "data_rank": groups.dp_cp.rank(),
            "expert_rank": groups.ep.rank(),
            "expert_data_rank": groups.expt_dp.rank(),
        },
    }
    policy.close()
    return result


def optimizer_tensors(policy: Policy, parameters: list[torch.nn.Parameter]) -> Iterator[torch.Tensor]:
    """fp32 copies of parameters and Adam's moments; step counters left out."""
    model = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    for each in getattr(policy.optimizer, "chained_optimizers", [policy.optimizer]):
        for group in each.optimizer.param_groups:
            for main in group["params"]:
                if main.untyped_storage().data_ptr() not in model:
                    yield main
                yield from (each.optimizer.state[main][name] for name in ("exp_avg", "exp_avg_sq"))


def storage_bytes(tensors: list[Any]) -> int:
    """Of all storages that the tensors lie in, each once."""
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.numel()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def main() -> None:
    train.set_up_logging(rank=1)
    results: dict[str, list] = {}
    initialize_distributed(timeout_minutes=5)
    gc.freeze()  # what is imported, a million objects: no collection need visit it
    runs = Path(sys.argv[1])
    for name, overrides in json.loads(runs.read_text()):
        mine = measure(compose_config(overrides)[0])
        results[name] = [None] * dist.get_world_size()
        dist.all_gather_object(results[name], mine)
        destroy_model_parallel()
        gc.collect()
    if dist.get_rank() == 0:
        runs.with_name(f"measured-{dist.get_world_size()}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
