"""Lets Transformer Engine's Python, the real one, run without a GPU: its compiled kernels are stood in for.

Python runs this file at its start where its folder is on the path, which is so for the processes of this test alone.
When Megatron-Core asks for Transformer Engine, its modules get what Megatron's have: a torch whose CUDA half is
answered by the CPU. To them that half says that it is there, and a tensor that it is on it.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
import types

import torch
import transformer_engine_torch

from sppo_megatron.parallel import fused_kernels

NAME = "transformer_engine"
HOPPER = (9, 0)
LEFT_OUT = (f"{NAME}.pytorch.triton", f"{NAME}.pytorch.onnx_extensions")  # they import packages of their own


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    shims: importlib.abc.MetaPathFinder | None = None  # what hands that torch to the modules

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != NAME:
            return None
        if self.shims is None:
            shim = sys.modules["sppo_megatron.megatron_cpu.shim"]
            properties = types.SimpleNamespace(major=HOPPER[0], minor=HOPPER[1], multi_processor_count=1, name="a GPU")
            shim.give_cpu_device(NAME, is_available=lambda: True, get_device_properties=lambda *_: properties)
            shim._for_callers_within(torch.Tensor, "to", to_cpu)
            torch.Tensor.is_cuda = property(is_cuda)
            self.shims = sys.meta_path.pop(0)
        if name.startswith(LEFT_OUT):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        spec = self.shims.find_spec(name, path, target)
        if name == f"{NAME}.common":
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (execute(module), leave_extension_alone(module))
        return spec

    def create_module(self, spec):
        return Empty(spec.name)

    def exec_module(self, module):
        pass


class Empty(types.ModuleType):
    __getattr__ = staticmethod(transformer_engine_torch.__getattr__)  # names of any kind; to call one raises


def leave_extension_alone(common) -> None:
    common.load_framework_extension = lambda framework: None


def to_cpu(original, self, *arguments, **options):
    if str(options.get("device", "")).startswith("cuda"):
        options["device"] = "cpu"
    return original(self, *arguments, **options)


def is_cuda(tensor: torch.Tensor) -> bool:
    asker = sys._getframe(1).f_globals.get("__name__", "")
    return asker.partition(".")[0] == NAME or tensor.device.type == "cuda"


fused_kernels.has_transformer_engine = lambda: True
fused_kernels.device_capability = lambda: HOPPER
fused_kernels.cuda_version = lambda: (13, 0)
os.environ |= {
    "NVTE_PROJECT_BUILDING": "1",  # none of its libraries is loaded
    "NVTE_MASKED_SOFTMAX_FUSION": "0",
    "NVTE_UNFUSED_FP8_UPDATE": "1",
}
sys.meta_path.insert(0, Finder())
