"""Records of some optimizer steps: traces, memory, marks for Nsight Systems, and what each rank did when."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch

from sppo_megatron.config import ProfilerConfig
from sppo_megatron.errors import ConfigError


class Profiler:
    """Records from the first to the last of `profiler.steps`, rollouts between them included.

    output_dir: `profile/` is made in it. rank: of this process in the job; it writes `rank_0003_steps_3-5.json.gz`
    there, in the format of Chrome's traces, of allocations on CUDA `rank_0003_steps_3-5_memory.pickle`, and in
    `rank_0003_steps_3-5_stages.json` {"rank": 3, "stages": [[name, start, end], ...]} in seconds since 1970.
    Raises ConfigError on profiler.nsys without CUDA.
    """

    def __init__(self, config: ProfilerConfig, output_dir: Path, rank: int) -> None:
        is_on = config.steps is not None and (config.ranks is None or rank in config.ranks)
        self._first, self._last = config.steps if is_on and config.steps else (0, 0)
        if is_on and config.nsys and not torch.cuda.is_available():
            raise ConfigError("profiler.nsys=true marks steps on CUDA, which isn't here: without it a trace is written")
        self._config = config
        self._path = output_dir / "profile" / f"rank_{rank:04d}_steps_{self._first}-{self._last}"
        self._rank = rank
        self._stages: list[tuple[str, float, float]] = []
        self._end: Callable[[], None] | None = None

    def step(self, number: int) -> AbstractContextManager[None]:
        """Around the optimizer step of this number. A run that continues behind the first step records the rest."""
        return self._recorded_step(number) if self._first <= number <= self._last else nullcontext()

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Around a part of an iteration, which has this name in what is recorded."""
        return nullcontext() if self._end is None else self._recorded_stage(name)

    @contextmanager
    def _recorded_step(self, number: int) -> Iterator[None]:
        if self._end is None:
            self._end = self._begin()
        with self._recorded_stage(f"optimizer step {number}"):
            yield
        if number == self._last:
            self.close()

    @contextmanager
    def _recorded_stage(self, name: str) -> Iterator[None]:
        start = time.time()
        with torch.cuda.nvtx.range(name) if self._config.nsys else torch.profiler.record_function(name):
            try:
                yield
            finally:
                self._stages.append((name, start, time.time()))

    def close(self) -> None:
        """Writes what was recorded, also if the run ends before the last step. A second call does nothing."""
        if self._end is not None:
            end, self._end = self._end, None
            end()
            stages = {"rank": self._rank, "stages": self._stages}
            Path(f"{self._path}_stages.json").write_text(json.dumps(stages), encoding="utf-8")

    def _begin(self) -> Callable[[], None]:
        """Starts recording; what is returned ends it and writes."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._config.nsys:
            torch.cuda.profiler.start()
            return torch.cuda.profiler.stop
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
