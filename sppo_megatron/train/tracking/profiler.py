"""Traces of some optimizer steps: torch's profiler, memory snapshots, or marks for Nsight Systems."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from sppo_megatron.config import ProfilerConfig
from sppo_megatron.errors import ConfigError


class Profiler:
    """Records from the first to the last of `profiler.steps`, rollouts between them included.

    output_dir: `profile/` is made in it. rank: of this process in the job; it writes `rank_0003_steps_3-5.json.gz`
    there, in the format of Chrome's traces, and of allocations on CUDA `rank_0003_steps_3-5_memory.pickle`.
    Raises ConfigError on profiler.nsys without CUDA.
    """

    def __init__(self, config: ProfilerConfig, output_dir: Path, rank: int) -> None:
        is_on = config.steps is not None and (config.ranks is None or rank in config.ranks)
        self._first, self._last = config.steps if is_on and config.steps else (0, 0)
        if is_on and config.nsys and not torch.cuda.is_available():
            raise ConfigError("profiler.nsys=true marks steps on CUDA, which isn't here: without it a trace is written")
        self._config = config
        self._path = output_dir / "profile" / f"rank_{rank:04d}_steps_{self._first}-{self._last}"
        self._end: Callable[[], None] | None = None

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around the optimizer step of this number. A run that continues behind the first step records the rest."""
        if self._end is None and self._first <= number <= self._last:
            self._end = self._begin()
        with torch.profiler.record_function(f"optimizer step {number}") if self._end else contextlib.nullcontext():
            yield
        if number == self._last:
            self.close()

    def close(self) -> None:
        """Writes what was recorded, also if the run ends before the last step. A second call does nothing."""
        if self._end is not None:
            end, self._end = self._end, None
            end()

    def _begin(self) -> Callable[[], None]:
        """Starts recording; what is returned ends it and writes."""
        if self._config.nsys:
            torch.cuda.profiler.start()
            return torch.cuda.profiler.stop
        self._path.parent.mkdir(parents=True, exist_ok=True)
        on_gpu = torch.cuda.is_available()
        if self._config.memory and on_gpu:
            torch.cuda.memory._record_memory_history()
        kinds = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * on_gpu
        trace = torch.profiler.profile(
            activities=kinds, with_stack=self._config.stacks, profile_memory=self._config.memory, record_shapes=True
        )
        trace.start()

        def end() -> None:
            trace.stop()
            trace.export_chrome_trace(f"{self._path}.json.gz")
            if self._config.memory and on_gpu:
                torch.cuda.memory._dump_snapshot(f"{self._path}_memory.pickle")
                torch.cuda.memory._record_memory_history(enabled=None)

        return end
