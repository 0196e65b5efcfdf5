"""What is recorded of some optimizer steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sppo_megatron.config.keys import Free


@dataclass
class ProfilerConfig:
    """Traces of some optimizer steps and of what lies between them, in output_dir/profile/."""

    steps: Free[list[int] | None] = None
    "First and last optimizer step that is recorded, counted from 1, as in [3,5]; null = nothing."
    ranks: Free[list[int] | None] = None
    "The ranks that record; null = all."
    stacks: Free[bool] = False
    "Also the Python lines that called each operator. Slower, and larger files."
    memory: Free[bool] = False
    "Also every allocation; on CUDA as a snapshot for PyTorch's memory viewer."
    nsys: Free[bool] = False
    "Instead of a trace: mark the steps for `nsys profile --capture-range=cudaProfilerApi`. CUDA only."


def check_profiler(profiler: ProfilerConfig) -> Iterator[str]:
    """What is wrong with the values together."""
    steps = profiler.steps
    if steps is not None and (len(steps) != 2 or not 1 <= steps[0] <= steps[1]):
        yield f"profiler.steps={steps} must be the first and the last step, counted from 1, as in profiler.steps=[3,5]"
