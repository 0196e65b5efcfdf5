"""torch's CUDA, the driver, NCCL, and each GPU with what it can do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from sppo_doctor.finding import NOTE, OK, PROBLEM, WARNING, Finding
from sppo_megatron.config.precision import FP8_REQUIREMENTS
from sppo_megatron.parallel.fused_kernels import cuda_version

AREA = "devices"
DRIVER = Path("/proc/driver/nvidia/version")
GIB = 2**30


def driver_version(path: Path = DRIVER) -> str | None:
    """The NVIDIA driver's, None without one."""
    match = re.search(r"\b(\d+\.\d+(?:\.\d+)?)\b", path.read_text(encoding="utf-8")) if path.is_file() else None
    return match[1] if match else None


def nccl_version() -> str | None:
    """Of torch's own NCCL, None without one."""
    if not dist.is_nccl_available() or torch.version.cuda is None:
        return None
    return ".".join(map(str, torch.cuda.nccl.version()))


def check_devices(driver: str | None) -> Iterator[Finding]:
    """driver: its version, None without an NVIDIA driver."""
    if torch.cuda.is_available():
        yield Finding(AREA, "driver", OK, f"{driver or 'of unknown version'}, torch for CUDA {torch.version.cuda}")
        nccl = nccl_version()
        lost = "torch was built without it: several GPUs can't work together"
        yield Finding(AREA, "NCCL", OK, nccl) if nccl else Finding(AREA, "NCCL", PROBLEM, lost)
        for index in range(torch.cuda.device_count()):
            yield _check_gpu(index)
    elif driver is None:
        yield Finding(AREA, "GPU", NOTE, "none: everything runs on CPU and gloo, for tests and small models")
    elif torch.version.cuda is None:
        fix = "install the CUDA build of this torch"
        yield Finding(AREA, "GPU", PROBLEM, f"there is a driver ({driver}), and torch is a build without CUDA", fix)
    else:
        text = f"torch for CUDA {torch.version.cuda} can't use the driver {driver}: {_reason()}"
        yield Finding(AREA, "GPU", PROBLEM, text, "update the driver, or look at CUDA_VISIBLE_DEVICES")


def _reason() -> str:
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return "no device is visible"


def _check_gpu(index: int) -> Finding:
    """A product of known value on the GPU, its memory, and the FP8 recipes that it runs."""
    properties = torch.cuda.get_device_properties(index)
    name, version = f"GPU {index}", (properties.major, properties.minor)
    recipes = [recipe for recipe, needs in FP8_REQUIREMENTS.items() if needs.is_met(version, cuda_version())]
    text = f"{properties.name}, {properties.total_memory / GIB:.0f} GiB, compute capability {version[0]}.{version[1]}"
    text += f", FP8: {', '.join(recipes) or 'none'}"
    try:
        ones = torch.ones(512, 512, dtype=torch.bfloat16, device=f"cuda:{index}")
        right = bool((ones @ ones == 512).all())
        free, total = torch.cuda.mem_get_info(index)
    except RuntimeError as error:
        return Finding(AREA, name, PROBLEM, f"{text}: {str(error).splitlines()[0]}", "reset or exchange it")
    if not right:
        return Finding(AREA, name, PROBLEM, f"{text}: a product of ones is wrong", "take it out of service")
    if total - free > 0.1 * total:
        held = (total - free) / GIB
        return Finding(AREA, name, WARNING, f"{text}; {held:.0f} GiB are taken by others", "nvidia-smi names who")
    return Finding(AREA, name, OK, text)
