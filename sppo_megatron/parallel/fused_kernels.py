"""Which fused kernels this process can use, Transformer Engine's and NVIDIA apex's, on which GPU. Nothing is imported.

`apex` on PyPI is a web toolkit that has nothing to do with NVIDIA's. The real one is known by its compiled modules:
amp_C (fused Adam, norms of many tensors at once) and fused_weight_gradient_mlp_cuda (weight gradients added in place).
"""

from __future__ import annotations

import importlib.util

import torch


def has_transformer_engine() -> bool:
    """Whether Transformer Engine's layers are used: it needs CUDA to run."""
    return torch.cuda.is_available() and is_installed("transformer_engine")


def has_apex() -> bool:
    """Whether NVIDIA apex's fused Adam is used if Transformer Engine's is missing."""
    return torch.cuda.is_available() and is_installed("apex") and is_installed("amp_C")


def has_apex_weight_gradient() -> bool:
    """Whether Megatron-Core's own linear layers can add weight gradients straight to `main_grad`."""
    return torch.cuda.is_available() and is_installed("fused_weight_gradient_mlp_cuda")


def device_capability() -> tuple[int, int] | None:
    """The compute capability of the current GPU, None without one."""
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def cuda_version() -> tuple[int, int]:
    """The CUDA that torch is built for; (0, 0) for none."""
    major, _, minor = (torch.version.cuda or "0.0").partition(".")
    return int(major), int(minor or 0)


def is_installed(module: str) -> bool:
    """Whether a top-level module can be found."""
    return importlib.util.find_spec(module) is not None
