"""One vLLM engine inside training ranks: started, fed with weights, asked for samples, put to sleep.

vLLM is imported when the replica is built, so that everything else works without it.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import os
import random
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sppo_megatron.cluster.garbage_collection import garbage_collection_paused
from sppo_megatron.cluster.interrupt import Interrupted, any_was_told
from sppo_megatron.engines.base import Request, request_seed
from sppo_megatron.engines.vllm.cpu_mends import cpu_arguments
from sppo_megatron.types import SamplingParams

logger = logging.getLogger(__name__)

WORKER_EXTENSION = "sppo_megatron.engines.vllm.worker.WeightReceiver"
STEPS_BETWEEN_CHECKS = 8  # tokens of every sequence, between two looks whether the job was told to stop
# In-process and deterministic; no thread binding, which would put all ranks of a machine on one core.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


@dataclass(frozen=True)
class EngineSettings:
    """What vLLM's engine is built with. dtype: fp32 | bf16 | fp16 of weights and activations.

    max_model_len: tokens of prompt and response together. gpu_memory_utilization: share of the device that vLLM takes
    while it is awake. kv_cache_memory_mib: size of the key-value cache instead, per rank (the only way on CPU).
    engine_args: more of vLLM's own engine arguments, by their names.
    standalone: vLLM reads the folder's weights and keeps the device to itself; else the first push brings the weights,
    and the device is shared with a trainer.
    """

    folder: Path
    dtype: str
    max_model_len: int
    tensor_parallel_size: int = 1
    max_num_seqs: int = 256
    gpu_memory_utilization: float = 0.4
    kv_cache_memory_mib: int | None = None
    enforce_eager: bool = False
    engine_args: dict[str, Any] = field(default_factory=dict)
    standalone: bool = False


class VllmReplica:
    """A vLLM engine spread over tensor_parallel_size consecutive ranks; every rank of the job builds one.

    The ranks of a replica make the same calls with the same arguments. Its weights are random until the first `load`,
    unless it stands alone.
    """

    def __init__(self, settings: EngineSettings, *, world_size: int) -> None:
        on_gpu = torch.cuda.is_available()
        self._sleeps = on_gpu and not settings.standalone
        for name, value in _ENVIRONMENT.items():
            os.environ[name] = value
        with _trainer_state_kept():
            with garbage_collection_paused():
                from vllm import LLM
            if settings.tensor_parallel_size > 1 and not on_gpu:
                from sppo_megatron.engines.vllm.shared_memory import separate_shared_memory

                separate_shared_memory()
            self._llm = LLM(**_engine_arguments(settings, world_size, on_gpu))
        self._make_interruptible()
        self._is_asleep = False
        self.sleep()

    def load(self, weights: Iterator[tuple[str, Tensor]], version: int) -> dict[str, Any]:
        """Takes (Hugging Face name, whole tensor) pairs; returns this rank's report of what it loaded."""
        with _trainer_state_kept():
            self.wake()
            [report] = self._llm.collective_rpc("sppo_load", args=(weights, version))
            self._llm.reset_prefix_cache()
            return report

    def generate(
        self, requests: Sequence[Request], params: SamplingParams
    ) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        """The samples of each request, as (token_ids int32, log_probs float32 nats after temperature)."""
        from vllm import TokensPrompt

        greedy = params.temperature == 0
        with _trainer_state_kept():
            self.wake()
            outputs = self._llm.generate(
                [TokensPrompt(prompt_token_ids=request.token_ids.tolist()) for request in requests],
                [_vllm_params(request, params) for request in requests],
                use_tqdm=False,
            )
        groups = [[_continuation(sample) for sample in output.outputs] for output in outputs]
        if not greedy:
            return groups
        return [group * request.num_samples for group, request in zip(groups, requests, strict=True)]

    def sleep(self) -> None:
        """Gives the device's memory to the trainer: weights move to the host, the cache is dropped. On CPU nothing."""
        if self._sleeps and not self._is_asleep:
            self._llm.sleep(level=1)
            self._is_asleep = True

    def _make_interruptible(self) -> None:
        """Has `generate` raise Interrupted, the same on every rank of the replica, if the job is told to stop."""
        from vllm.distributed import get_tp_group

        engine: Any = self._llm.llm_engine
        step, count = engine.step, itertools.count()

        def checked_step() -> Any:
            if next(count) % STEPS_BETWEEN_CHECKS == 0 and any_was_told(torch.device("cpu"), get_tp_group().cpu_group):
                raise Interrupted
            return step()

        engine.step = checked_step

    def close(self) -> None:
        """Ends the engine and vLLM's process groups; the trainer's stay, which vLLM's own clean-up would end, too."""
        from vllm.distributed import parallel_state

        finalizer = getattr(self._llm.llm_engine.engine_core, "_finalizer", None)
        if isinstance(finalizer, weakref.finalize):
            finalizer.detach()
        self._llm.llm_engine.model_executor.shutdown()
        del self._llm
        parallel_state.destroy_model_parallel()
        if parallel_state._WORLD is not None:
            parallel_state._WORLD.destroy()
            parallel_state._WORLD = None
        gc.unfreeze()  # vLLM hides what it allocates at its start from the collector
        gc.collect()

    def wake(self) -> None:
        """Takes the memory back that `sleep` gave."""
        if self._is_asleep:
            torch.cuda.empty_cache()  # vLLM maps its memory anew, outside of torch's cache
            self._llm.wake_up()
            self._is_asleep = False


def _engine_arguments(settings: EngineSettings, world_size: int, on_gpu: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": str(settings.folder),
        "load_format": "auto" if settings.standalone else "dummy",
        "skip_tokenizer_init": True,
        "dtype": {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[settings.dtype],
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "distributed_executor_backend": "external_launcher" if world_size > 1 else "uni",
        "logprobs_mode": "processed_logprobs",  # after the temperature: those of the distribution sampled from
        "generation_config": "vllm",
        "worker_extension_cls": WORKER_EXTENSION,
        "enforce_eager": settings.enforce_eager or not on_gpu,
        "seed": 0,
        "disable_log_stats": True,
    }
    if on_gpu:
        arguments["gpu_memory_utilization"] = settings.gpu_memory_utilization
        arguments["enable_sleep_mode"] = not settings.standalone
    else:
        # vLLM takes back what it drew for a prompt that is computed in parts; a generator on CPU can't, and it crashes.
        arguments["enable_chunked_prefill"] = False
        arguments |= cpu_arguments(settings.folder)
    if not settings.standalone:  # what the trainer sends is not quantised, whatever the folder's weights are
        arguments["hf_overrides"] = _unquantised
    if settings.kv_cache_memory_mib is not None or not on_gpu:
        arguments["kv_cache_memory_bytes"] = (settings.kv_cache_memory_mib or 256) << 20
    return arguments | settings.engine_args


def _unquantised(hf_config: Any) -> Any:
    if hasattr(hf_config, "quantization_config"):
        del hf_config.quantization_config
    return hf_config


def _vllm_params(request: Request, params: SamplingParams) -> Any:
    from vllm import SamplingParams as VllmSamplingParams

    return VllmSamplingParams(
        n=1 if params.temperature == 0 else request.num_samples,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        seed=request_seed(request.seed),
        max_tokens=request.limited(params).max_new_tokens,
        stop_token_ids=sorted(params.stop_token_ids),
        ignore_eos=True,  # the stop tokens say where a response ends
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
    )


def _continuation(sample: Any) -> tuple[np.ndarray, np.ndarray]:
    flat = sample.logprobs  # one entry for each position, since nothing but the sampled token is asked for
    if flat.token_ids != list(sample.token_ids):
        raise RuntimeError("vLLM's log-probs are not those of the tokens that it sampled")
    return np.array(sample.token_ids, np.int32), np.array(flat.logprobs, np.float32)


@contextlib.contextmanager
def _trainer_state_kept() -> Iterator[None]:
    """vLLM seeds the global generators and sets the number of threads: both go back to what they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)
        torch.set_num_threads(threads)
