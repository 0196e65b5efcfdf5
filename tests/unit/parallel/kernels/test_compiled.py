"""The kernels compiled to machine code for GPUs by Triton's own compiler, which needs no GPU for it.

Every call of a launcher compiles what it would launch, with the arguments specialized as a launch specializes them.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

if importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("needs Triton, and not its interpreter", allow_module_level=True)

CAPABILITIES = [80, 90, 100]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOKENS = 16


@dataclass(frozen=True)
class Driver:
    """What Triton asks of a GPU's driver before it compiles."""

    capability: int

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability

    def get_current_stream(self, device=None):
        return 0


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """[] that gets what each launch would run."""
    from triton.runtime.jit import JITFunction

    kernels, run = [], JITFunction.run

    def compile_only(self, *arguments, grid, warmup, **options):
        kernels.append(run(self, *arguments, grid=grid, warmup=True, **options))

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(JITFunction, "run", compile_only)
    return kernels


@pytest.fixture(params=CAPABILITIES)
def capability(request, monkeypatch):
    from triton.runtime import driver

    monkeypatch.setattr(driver, "_active", Driver(request.param))
    return request.param


def resources(kernel, folder: Path) -> dict[str, int]:
    """REG, STACK, SHARED and others of the machine code, as NVIDIA's cuobjdump reads them."""
    import triton

    binary = folder / "kernel.cubin"
    binary.write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    done = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True)
    return {name: int(value) for name, value in re.findall(r"([A-Z]+):(\d+)", done.stdout)}


def check(kernel, folder: Path, capability: int, wide: bool) -> None:
    """Nothing spilled, enough registers for all threads of a processor, and 16 bytes an access if rows allow it."""
    usage = resources(kernel, folder)
    assert kernel.metadata.target.arch == capability
    assert usage["STACK"] == usage["LOCAL"] == 0 and usage["REG"] <= 64, usage
    assert ("ld.global.v4.b32" in kernel.asm["ptx"]) == wide


@pytest.mark.parametrize("columns", [8192, 1001, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("entropy", [False, True], ids=["log-probs", "entropy"])
def test_statistics(compiled, capability, tmp_path, dtype, columns, entropy):
    from sppo_megatron.parallel.kernels import softmax

    tile = torch.zeros(TOKENS, columns, dtype=dtype)
    softmax.update_statistics(tile, torch.zeros(TOKENS).long(), torch.zeros(4 if entropy else 3, TOKENS), 0, 0.5)
    check(*compiled, tmp_path, capability, wide=columns == 8192)


@pytest.mark.parametrize("columns", [8192, 1001, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("entropy", [False, True], ids=["log-probs", "entropy"])
def test_gradient(compiled, capability, tmp_path, dtype, out_dtype, columns, entropy):
    from sppo_megatron.parallel.kernels import softmax

    numbers = torch.zeros(TOKENS)
    softmax.write_gradient(
        torch.zeros(TOKENS, columns, dtype=dtype),
        torch.zeros(TOKENS, columns, dtype=out_dtype),
        torch.zeros(TOKENS).long(),
        numbers,
        0,
        0.5,
        log_prob_grad=numbers if entropy else None,
        entropy_grad=numbers if entropy else None,
        entropy=numbers if entropy else None,
        coefficient=None if entropy else numbers,
    )
    check(*compiled, tmp_path, capability, wide=columns == 8192)
