"""Megatron-Core sees a torch that runs on CPU, and nobody else does. In processes of their own: it is about imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the shim is inert if CUDA exists")

# What the rest of the process sees of torch; asked before and after the import.
OUTSIDE = """
import json, sys, torch

def error_of(call):
    try:
        return ["returned", str(call())]
    except BaseException as error:
        return [type(error).__name__, str(error)]

def outside():
    x = torch.ones(2)
    return {
        "is_available": torch.cuda.is_available(),
        "device_count": torch.cuda.device_count(),
        "current_device": error_of(lambda: torch.cuda.current_device()),
        "empty": error_of(lambda: torch.empty(1, device="cuda")),
        "zeros by index": error_of(lambda: torch.zeros(1, device=0)),
        "Tensor.cuda": error_of(lambda: x.cuda()),
        "Module.cuda": error_of(lambda: torch.nn.Linear(1, 1).cuda()),
        "Tensor.pin_memory": error_of(lambda: x.pin_memory())[0],
        "Tensor.type": x.type(),
        "Tensor.type to double": x.type(torch.float64).type(),
        "synchronize": error_of(lambda: torch.cuda.synchronize()),
        "Stream": error_of(lambda: torch.cuda.Stream())[0],
        "rng state": error_of(lambda: torch.cuda.get_rng_state()),
        "compile": [torch.compile.__module__, torch.compile.__qualname__],
        "autocast": [torch.autocast.__module__, torch.autocast.__qualname__],
        "import": __import__.__module__,
        "ids": {name: id(getattr(torch, name)) for name in ("cuda", "compile", "autocast", "empty", "zeros", "amp")},
    }
"""
MAIN = (
    OUTSIDE
    + """
before = outside()
import sppo_megatron.policy
after = outside()

from sppo_megatron import megatron_cpu as cpu
from megatron.core import parallel_state, tensor_parallel
import megatron.core.transformer.transformer_layer as late  # a module that is imported after install()

inner = parallel_state.torch
facts = {
    "is another torch": inner is not torch and late.torch is inner,
    "type": type(inner).__name__,
    "module sys": sys.modules["torch"] is torch,
    "current device": str(inner.cuda.current_device()),
    "device of empty": str(inner.empty(1, device="cuda").device),
    "device of current_device": str(inner.zeros(1, device=inner.cuda.current_device()).device),
    "device of an index": str(inner.zeros(1, device=0).device),
    "pinned": inner.zeros(1, pin_memory=True).is_pinned(),
    "like": str(inner.empty_like(torch.ones(2), device="cuda:0").device),
    "meta stays": str(inner.empty(1, device="meta").device),
    "no device": inner.ones(2).tolist(),
    "Tensor is torch's": inner.Tensor is torch.Tensor and inner.nn is torch.nn,
    "isinstance": isinstance(inner.ones(1), torch.Tensor),
    "compile": inner.compile(len) is len and inner.compile(fullgraph=True)(len) is len,
    "rng": torch.equal(inner.cuda.get_rng_state(), torch.get_rng_state()),
    "available": inner.cuda.is_available(),
}
event = inner.cuda.Event(enable_timing=True)
event.record()
with inner.cuda.stream(inner.cuda.current_stream()):
    inner.cuda.synchronize()
later = inner.cuda.current_stream().record_event()
facts["elapsed"] = event.elapsed_time(later) >= 0

# Tensor methods look at their caller's module.
scope = {"__name__": "megatron.core.example", "torch": torch}
exec("x = torch.ones(2); cuda = x.cuda() is x; kind = x.type(); pinned = x.pin_memory() is x", scope)
facts["methods inside"] = [scope["cuda"], scope["kind"], scope["pinned"]]
scope = {"__name__": "megatronic.example", "torch": torch}
exec("x = torch.ones(2); kind = x.type()", scope)
facts["methods of a namesake"] = scope["kind"]

finders, cuda_method = len(sys.meta_path), torch.Tensor.cuda
cpu.install()
facts["twice"] = len(sys.meta_path) == finders and torch.Tensor.cuda is cuda_method
print("RESULT" + json.dumps([before, after, outside(), facts]))
"""
)
TOO_LATE = """
import importlib.util, sys, types
if %(with_triton)s and importlib.util.find_spec("triton") is None:  # what megatron.core needs to be imported as a whole
    kernels = types.ModuleType("megatron.core.transformer.moe.ops.paged_stash")
    kernels.GLOBAL_BLOCK_SIZE = kernels.paged_stash_copy_kernel = kernels.paged_stash_pop_kernel = None
    sys.modules[kernels.__name__] = kernels
try:
    import megatron.core
except ImportError:
    assert not %(with_triton)s and "megatron.core" not in sys.modules  # its submodules are there
try:
    import sppo_megatron.policy
except RuntimeError as error:
    print("RESULT" + str(error))
"""
NOT_INSTALLED = """
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name.partition(".")[0] == "megatron" else find_spec(name, *args)
try:
    import sppo_megatron.policy
except ImportError as error:
    print("RESULT" + str(error))
"""

# Transformer Engine is there, as on a cluster's login node: it would be found, and its fused Adam taken.
LOGIN_NODE = """
import importlib, sys, types
modules = ("transformer_engine", "transformer_engine.pytorch", "transformer_engine.pytorch.optimizers")
for name in modules:
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__version__, sys.modules[name].__path__ = "2.20.2", []
sys.modules[modules[-1]].FusedAdam = sys.modules[modules[-1]].FusedSGD = None
import sppo_megatron.policy
from megatron.core.optimizer import Adam
import torch, transformer_engine
print("RESULT" + str(Adam is torch.optim.AdamW))
"""


# Has imported torch, which is most of the time, and nothing else; a fork runs each program.
SERVER = """
import json, os, sys, traceback
import torch, torch.distributed._tensor, torch.distributed.checkpoint
for name, code in json.load(sys.stdin).items():
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with open(name, "w") as output:
                os.dup2(output.fileno(), 1)
                exec(code, {"__name__": "__main__"})
                sys.stdout.flush()
            status = 0
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    os.waitpid(child, 0)
"""
PROGRAMS = {
    "main": MAIN,
    "too late": TOO_LATE % {"with_triton": True},
    "too late without triton": TOO_LATE % {"with_triton": False},
    "login node": LOGIN_NODE,
    "not installed": NOT_INSTALLED,
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each program says, by its name."""
    folder = tmp_path_factory.mktemp("programs")
    command, environment = [sys.executable, "-c", SERVER], os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        command, input=json.dumps(PROGRAMS), cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    said = {name: (folder / name).read_text() for name in PROGRAMS}
    assert all("RESULT" in text for text in said.values()), done.stderr
    return {name: text.rpartition("RESULT")[2].strip() for name, text in said.items()}


@pytest.fixture(scope="module")
def observed(results):
    return json.loads(results["main"])


def test_nothing_changes_outside(observed):
    before, after, after_second_install, _ = observed
    assert before["is_available"] is False
    assert before["current_device"][0] != "returned" and before["empty"][0] != "returned"
    assert before["compile"] == ["torch", "compile"]
    assert after == before
    assert after_second_install == before


@pytest.mark.parametrize(
    ("fact", "expected"),
    {
        "is another torch": True,
        "type": "_Shim",
        "module sys": True,
        "current device": "cpu",
        "device of empty": "cpu",
        "device of current_device": "cpu",
        "device of an index": "cpu",
        "pinned": False,
        "like": "cpu",
        "meta stays": "meta",
        "no device": [1.0, 1.0],
        "Tensor is torch's": True,
        "isinstance": True,
        "compile": True,
        "rng": True,
        "available": False,
        "elapsed": True,
        "methods inside": [True, "torch.cuda.FloatTensor", True],
        "methods of a namesake": "torch.FloatTensor",
        "twice": True,
    }.items(),
)
def test_inside_megatron(observed, fact, expected):
    assert observed[3][fact] == expected


@pytest.mark.parametrize("program", ["too late", "too late without triton"])
def test_megatron_imported_first_is_refused_with_what_to_do(results, program):
    message = results[program]
    assert "megatron.core was imported before sppo_megatron.policy" in message
    assert "import sppo_megatron.policy first" in message


def test_transformer_engine_without_a_gpu_is_left_alone(results):
    assert results["login node"] == "True"


def test_without_megatron_the_message_says_what_to_install(results):
    assert "pip install 'megatron-core>=" in results["not installed"]
