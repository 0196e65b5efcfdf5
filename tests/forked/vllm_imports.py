"""Imports vLLM as the product does it inside a rank: with the variables that it sets before."""

import importlib
import os

import torch

os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_NO_USAGE_STATS="1",
    VLLM_LOGGING_LEVEL="ERROR",
)

for name in (
    "vllm.entrypoints.llm",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.models.qwen2",
    "vllm.model_executor.models.qwen3",
    "torch._dynamo",
    "torch._inductor",
    "sppo_megatron.engines.vllm.worker",
):
    importlib.import_module(name)
torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))  # as vLLM's sampler does; imports dynamo's parts
