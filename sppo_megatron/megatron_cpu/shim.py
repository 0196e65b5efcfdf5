"""A torch whose CUDA half is answered by the CPU, seen by the modules of one package alone: `megatron`.

Patching torch itself would do for Megatron-Core and break whatever else lives in the process (vLLM, torch.compile), so
the patch is scoped: an import hook gives each module of the package an `__import__` that hands out the shims below.
Tensor methods can't be scoped by import; those look at their caller's module instead.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import sys
import time
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch

from sppo_megatron.parallel.fused_kernels import has_transformer_engine

_CPU = torch.device("cpu")
_PACKAGE = "megatron"
_packages: set[str] = set()  # that see the shims

_FACTORIES = [
    "empty",
    "zeros",
    "ones",
    "full",
    "tensor",
    "as_tensor",
    "arange",
    "linspace",
    "rand",
    "randn",
    "randint",
    "randperm",
    "eye",
    "empty_strided",
    "empty_like",
    "zeros_like",
    "ones_like",
    "full_like",
    "rand_like",
    "randn_like",
]
_CUDA_NO_OPS = [
    "synchronize",
    "set_device",
    "empty_cache",
    "ipc_collect",
    "set_stream",
    "reset_peak_memory_stats",
    "_lazy_init",
    "init",
]
_CUDA_ZEROS = ["memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"]
_LEGACY_TENSOR_TYPES = ["Float", "Half", "BFloat16", "Int", "Long", "Byte", "Bool", "Double"]


class _Shim(types.ModuleType):
    """A module that answers with its overrides first and with the real module's attributes otherwise."""

    def __init__(self, real: types.ModuleType, overrides: dict[str, Any]):
        super().__init__(real.__name__)
        self.__dict__["_real"] = real
        self.__dict__.update(overrides)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_real"], name)


class _Event:
    """CPU work is done when the call returns, so an event is a time stamp."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.seconds = 0.0

    def record(self, stream: Any = None) -> None:
        self.seconds = time.perf_counter()

    def wait(self, stream: Any = None) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: _Event) -> float:
        return (other.seconds - self.seconds) * 1e3


class _Stream:
    """The one stream of a CPU: program order."""

    cuda_stream = 0
    device = _CPU

    def __init__(self, *args: Any, **kwargs: Any): ...

    def wait_stream(self, stream: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def record_event(self, event: _Event | None = None) -> _Event:
        event = event or _Event()
        event.record()
        return event

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *exc: Any) -> None: ...


class _OneGenerator:
    """`torch.cuda.default_generators`, indexed by device: on CPU there is one generator."""

    def __getitem__(self, device: Any) -> torch.Generator:
        return torch.default_generator


@contextlib.contextmanager
def _null_context(*args: Any, **kwargs: Any):
    yield


def _no_op(*args: Any, **kwargs: Any) -> None: ...


def _no_compile(function: Callable | None = None, **kwargs: Any) -> Any:
    return function if function is not None else (lambda f: f)


def _on_cpu(factory: Callable) -> Callable:
    """The tensor factory with CUDA devices replaced and pinned memory dropped."""

    @functools.wraps(factory)
    def on_cpu(*args: Any, **kwargs: Any):
        kwargs.pop("pin_memory", None)
        device = kwargs.get("device")
        is_cuda = isinstance(device, int) or (device is not None and torch.device(device).type == "cuda")
        if is_cuda:
            kwargs["device"] = _CPU
        return factory(*args, **kwargs)

    return on_cpu


def _cuda_shim() -> _Shim:
    def get_rng_state(*args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(state: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        torch.set_rng_state(state)

    def manual_seed(seed: int) -> None:
        torch.default_generator.manual_seed(int(seed))

    random = {
        "get_rng_state": get_rng_state,
        "set_rng_state": set_rng_state,
        "manual_seed": manual_seed,
        "manual_seed_all": manual_seed,
        "initial_seed": torch.initial_seed,
    }
    stream = _Stream()
    properties = types.SimpleNamespace(major=0, minor=0, total_memory=0, multi_processor_count=1, name="cpu")
    overrides: dict[str, Any] = dict.fromkeys(_CUDA_NO_OPS, _no_op)
    overrides |= {name: lambda *args, **kwargs: 0 for name in _CUDA_ZEROS}
    overrides |= {f"{name}Tensor": getattr(torch, f"{name}Tensor") for name in _LEGACY_TENSOR_TYPES}
    overrides |= random
    overrides |= {
        "random": _Shim(torch.cuda.random, random),
        "nvtx": _Shim(
            torch.cuda.nvtx, {"range_push": _no_op, "range_pop": _no_op, "mark": _no_op, "range": _null_context}
        ),
        "default_generators": _OneGenerator(),
        "current_device": lambda: _CPU,
        "device_count": lambda: 1,
        "mem_get_info": lambda *args, **kwargs: (0, 0),
        "memory_stats": lambda *args, **kwargs: {},
        "get_device_capability": lambda *args, **kwargs: (0, 0),
        "get_device_name": lambda *args, **kwargs: "cpu",
        "get_device_properties": lambda *args, **kwargs: properties,
        "is_current_stream_capturing": lambda: False,
        "_lazy_call": lambda callback, **kwargs: callback(),
        "Event": _Event,
        "Stream": _Stream,
        "current_stream": lambda *args, **kwargs: stream,
        "default_stream": lambda *args, **kwargs: stream,
        "stream": _null_context,
        "device": _null_context,
        "graph": _null_context,
    }
    return _Shim(torch.cuda, overrides)


def _torch_shim(cuda: _Shim) -> _Shim:
    class CpuAutocast(torch.autocast):
        def __init__(self, device_type: str, *args: Any, **kwargs: Any):
            super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    overrides: dict[str, Any] = {name: _on_cpu(getattr(torch, name)) for name in _FACTORIES}
    overrides |= {
        "cuda": cuda,
        "autocast": CpuAutocast,
        "amp": _Shim(torch.amp, {"autocast": CpuAutocast}),
        "compile": _no_compile,
    }
    return _Shim(torch, overrides)


class _Finder(importlib.abc.MetaPathFinder):
    """Gives every module of one package its own builtins, whose `__import__` hands out the shims."""

    def __init__(self, package: str, builtins_of_package: dict[str, Any]):
        self._package, self._builtins = package, builtins_of_package

    def find_spec(self, name: str, path: Any, target: Any = None):
        if name.partition(".")[0] != self._package:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None and hasattr(spec.loader, "exec_module"):
            execute = spec.loader.exec_module

            def exec_module(module: types.ModuleType) -> None:
                module.__dict__["__builtins__"] = self._builtins
                execute(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _import_with(shim: _Shim, cuda: _Shim) -> Callable:
    # Installed, say, on a cluster's login node. Megatron-Core would take its optimizer and norms, which need a GPU.
    hides = not has_transformer_engine()

    def scoped_import(name, globals=None, locals=None, fromlist=(), level=0):
        if hides and name.partition(".")[0] == "transformer_engine" and _importer(globals).startswith("megatron.core."):
            raise ModuleNotFoundError(f"{name} needs CUDA", name=name)
        module = builtins.__import__(name, globals, locals, fromlist, level)
        if level == 0 and name.partition(".")[0] == "torch":
            if not fromlist or name == "torch":
                return shim
            if name == "torch.cuda":
                return cuda
        return module

    return scoped_import


def _importer(namespace: dict[str, Any] | None) -> str:
    return (namespace or {}).get("__name__", "")


def _for_callers_within(owner: type, name: str, replacement: Callable) -> None:
    """Replaces a method for callers inside the packages; every other caller gets the original."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def method(self, *args: Any, **kwargs: Any):
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.partition(".")[0] in _packages:
            return replacement(original, self, *args, **kwargs)
        return original(self, *args, **kwargs)

    setattr(owner, name, method)


def _stub_triton_kernels() -> None:
    """`schedules` imports this module of Triton kernels unconditionally; nothing on CPU calls what is in it.

    Only that module is stubbed, so that every other probe for triton still answers no.
    """
    if importlib.util.find_spec("triton") is not None:
        return
    stub = types.ModuleType("megatron.core.transformer.moe.ops.paged_stash")
    stub.GLOBAL_BLOCK_SIZE = 1024  # type: ignore[attr-defined]
    stub.paged_stash_copy_kernel = stub.paged_stash_pop_kernel = None  # type: ignore[attr-defined]
    sys.modules.setdefault(stub.__name__, stub)


def give_cpu_device(package: str, **cuda_overrides: Any) -> None:
    """Hands the shims to the modules of `package` that are imported from now on. cuda_overrides: of torch.cuda."""
    cuda = _cuda_shim()
    cuda.__dict__.update(cuda_overrides)
    namespace = {**vars(builtins), "__import__": _import_with(_torch_shim(cuda), cuda)}
    sys.meta_path.insert(0, _Finder(package, namespace))
    _packages.add(package)


@functools.cache
def install() -> None:
    """Makes Megatron-Core importable and runnable without CUDA. Call it before anything of megatron is imported.

    Raises RuntimeError if megatron.core is already imported: its modules would hold the real torch.cuda.
    """
    if torch.cuda.is_available():
        return
    # An import of megatron.core that failed (it needs triton) leaves submodules behind.
    if any(f"{name}.".startswith(f"{_PACKAGE}.core.") for name in sys.modules):
        raise RuntimeError(
            "megatron.core was imported before sppo_megatron.policy: import sppo_megatron.policy first, "
            "so that Megatron-Core can be given a CPU device"
        )
    give_cpu_device(_PACKAGE)
    for owner, name in ((torch.Tensor, "cuda"), (torch.nn.Module, "cuda"), (torch.Tensor, "pin_memory")):
        _for_callers_within(owner, name, lambda original, self, *args, **kwargs: self)
    _for_callers_within(torch.Tensor, "record_stream", lambda original, self, *args, **kwargs: None)
    # Megatron's optimizers sort parameters by 'torch.cuda.FloatTensor' and its siblings.
    _for_callers_within(torch.Tensor, "type", _cuda_type_name)

    logging.getLogger("megatron.core.tensor_parallel.random").addFilter(
        lambda record: "CPU RNG state changed" not in record.getMessage()  # the "CUDA" generator is the CPU's here
    )
    _stub_triton_kernels()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Transformer Engine and Apex are not installed")
        from sppo_megatron.megatron_cpu import patches  # imports Megatron-Core, which from here on sees the shims

    patches.apply()


def _cuda_type_name(original: Callable, self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    result = original(self, *args, **kwargs)
    return result.replace("torch.", "torch.cuda.", 1) if isinstance(result, str) else result
