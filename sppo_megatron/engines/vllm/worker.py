"""What runs inside vLLM's workers: weights of the trainer go into vLLM's model, and the worker reports what it got.

vLLM takes it by name: `worker_extension_cls="sppo_megatron.engines.vllm.worker.WeightReceiver"`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn
from vllm.config import set_current_vllm_config
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.platforms import current_platform

from sppo_megatron.engines.fingerprint import WeightCounter
from sppo_megatron.engines.vllm.cpu_mends import mend_rotary
from sppo_megatron.engines.vllm.names import find_untaken
from sppo_megatron.engines.vllm_servers.broadcast_link import BroadcastLink


class WeightReceiver:
    """Mixed into vLLM's worker class; called through `collective_rpc`."""

    vllm_config: Any
    model_runner: Any
    model_config: Any
    weight_transfer_engine: Any
    sppo_weights: dict[str, Any] | None = None

    def sppo_load(self, weights: Iterator[tuple[str, Tensor]], version: int) -> dict[str, Any]:
        """Loads weights of Hugging Face names, one tensor at a time; returns what `sppo_report` will."""
        counter, model = WeightCounter(), self.model_runner.get_model()
        with set_current_vllm_config(self.vllm_config):
            begin_loading(model)
            problem = take_weights(model, counter.watch(weights), self.model_config)
            end_loading(model, self.model_config)
        self.sppo_weights = {"version": version, "problem": problem, **asdict(counter.fingerprint())}
        return self.sppo_weights

    def sppo_load_folder(self, folder: str, version: int) -> dict[str, Any]:
        """The same from the safetensors files of a folder."""
        return self.sppo_load(read_weights(Path(folder)), version)

    def sppo_note(self, version: int) -> dict[str, Any] | None:
        """Gives the weights that were broadcast last their version; returns what `sppo_report` will."""
        engine = self.weight_transfer_engine
        if isinstance(engine, BroadcastReceiver) and engine.counter is not None:
            self.sppo_weights = {"version": version, "problem": engine.problem, **asdict(engine.counter.fingerprint())}
        return self.sppo_weights

    def sppo_report(self) -> dict[str, Any] | None:
        """Version and fingerprint of the weights that were loaded last; None before the first."""
        return self.sppo_weights


@dataclass
class BroadcastInit(WeightTransferInitInfo):
    """host, port: of the trainer rank's store. world_size: that rank and all of this server's workers."""

    host: str
    port: int
    world_size: int
    timeout_s: float


@dataclass
class BroadcastUpdate(WeightTransferUpdateInfo):
    """The stream itself says what it holds."""


class BroadcastReceiver(WeightTransferEngine[BroadcastInit, BroadcastUpdate]):
    """vLLM's weight-transfer engine `sppo`: buckets of weights by broadcast from a rank of the trainer."""

    init_info_cls = BroadcastInit
    update_info_cls = BroadcastUpdate
    link: BroadcastLink | None = None
    counter: WeightCounter | None = None
    problem: str | None = None

    def init_transfer_engine(self, init_info: BroadcastInit) -> None:
        """Joins the trainer's group; a group from before is left."""
        parallel = self.parallel_config
        rank = 1 + parallel.data_parallel_index * parallel.world_size + parallel.rank
        self.link = BroadcastLink.join(
            init_info.host, init_info.port, rank, init_info.world_size, self.device, init_info.timeout_s
        )

    def start_weight_update(self) -> None:
        self.counter = WeightCounter()
        begin_loading(self.model)

    def receive_weights(self, update_info: BroadcastUpdate) -> None:
        assert self.link is not None and self.counter is not None, "a session was started and a group joined"
        self.problem = take_weights(self.model, self.counter.watch(self.link.receive()), self.model_config)

    def finish_weight_update(self) -> None:
        end_loading(self.model, self.model_config)

    def shutdown(self) -> None:
        self.link = None


if current_platform.is_cpu():  # vLLM imports this module before it builds a model
    mend_rotary()

BACKEND = "sppo"
if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, BroadcastReceiver)


def read_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a folder's safetensors files, one at a time."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                yield name, tensors.get_tensor(name)


def begin_loading(model: nn.Module) -> None:
    """Prepares vLLM's model for weights in checkpoint format."""
    for module in model.modules() if current_platform.is_cpu() else ():
        method: Any = getattr(module, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None  # else a CPU's experts are not packed again, and the old ones go on answering
    sinks = [(module, module.sinks) for module in model.modules() if isinstance(getattr(module, "sinks", None), Tensor)]
    initialize_layerwise_reload(model)
    for module, parameter in sinks:
        # vLLM copies them into the parameter without a loader. During a reload that is an empty one, which takes
        # nothing and says nothing; so it is the one that attention reads.
        module.sinks = parameter


def take_weights(model: Any, weights: Iterator[tuple[str, Tensor]], model_config: Any) -> str | None:
    """Has vLLM's model load them. Returns what it did not take, None if it took all; see find_untaken."""
    sent: list[str] = []

    def noted() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            sent.append(name)
            yield name, tensor

    loaded = model.load_weights(noted())
    if loaded is None:  # some models don't say
        return None
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    return find_untaken(
        sent,
        loaded,
        getattr(model, "packed_modules_mapping", {}),
        (lambda name: name) if mapper is None else mapper.map_name,
        ties_head=model_config.hf_text_config.tie_word_embeddings,
    )


def end_loading(model: nn.Module, model_config: Any) -> None:
    """Puts what was loaded into the form that vLLM computes with."""
    finalize_layerwise_reload(model, model_config)
    head = getattr(model, "lm_head", None)
    if head is not None and model_config.hf_text_config.tie_word_embeddings:
        head.quant_method.process_weights_after_loading(head)  # a tied head keeps its packed copy otherwise
