"""What the benchmarks share: time and peak extra memory of functions, in rounds of alternating order."""

from __future__ import annotations

import ctypes
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

MIB = 2**20
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "process": time.process_time}


def measure(
    variants: dict[str, Callable[[], Any]],
    rounds: int,
    device: torch.device,
    clock: str = "wall",
    warm_up: int = 1,
) -> dict[str, dict[str, float]]:
    """{name: {seconds, seconds_min, extra_mib}}: medians over rounds; every other round runs in reverse order.

    A variant is called without arguments and frees what it made before it returns. Over several ranks all start
    together and the slowest counts. extra_mib: the peak during a call beyond what was held before it. clock: wall, or
    process, the CPU time of the process, which a busy machine disturbs less and which leaves waiting out.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    extra: dict[str, list[float]] = {name: [] for name in variants}
    gc.collect()
    gc.freeze()  # modules and inputs: the collections before each call need not visit them
    for number in range(-warm_up, rounds):
        names = list(variants) if number % 2 == 0 else list(reversed(variants))
        for name in names:
            seconds, mib = _one_call(variants[name], device, CLOCKS[clock])
            if number >= 0:
                times[name].append(seconds)
                extra[name].append(mib)
    return {
        name: {
            "seconds": statistics.median(times[name]),
            "seconds_min": min(times[name]),
            "extra_mib": statistics.median(extra[name]),
        }
        for name in variants
    }


def _one_call(function: Callable[[], Any], device: torch.device, clock: Callable[[], float]) -> tuple[float, float]:
    gc.collect()
    before = _reset_peak(device)
    _wait(device)
    start = clock()
    function()
    _wait(device, barrier=False)
    seconds = clock() - start
    mib = (_peak(device) - before) / MIB
    if dist.is_initialized() and dist.get_world_size() > 1:
        both = torch.tensor([seconds, mib], dtype=torch.float64, device=device)
        dist.all_reduce(both, op=dist.ReduceOp.MAX)
        seconds, mib = both.tolist()
    return seconds, mib


def _wait(device: torch.device, barrier: bool = True) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if barrier and dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()


def _reset_peak(device: torch.device) -> int:
    """Bytes held now; the peak is counted from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed must not be there to be used again
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
    return _status("VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}: memory is measured on Linux only")


def machine(device: torch.device) -> dict[str, Any]:
    """What a figure is worth nothing without."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "ranks": dist.get_world_size() if dist.is_initialized() else 1,
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def print_table(rows: list[dict[str, Any]], columns: list[str]) -> None:
    """Numbers with three digits; a missing one is a dash."""
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(column), *(len(line[i]) for line in cells)) for i, column in enumerate(columns)]
    for line in (columns, *cells):
        print(
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
        )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return (
        f"{value:.3g}"
        if isinstance(value, float) and abs(value) < 100
        else f"{value:.0f}"
        if isinstance(value, float)
        else str(value)
    )


def write_json(path: str | None, result: dict[str, Any]) -> None:
    if path is not None:
        Path(path).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
