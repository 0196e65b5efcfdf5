"""Runs that get SIGTERM at a named moment, and then the same command again, in one set of processes.

    torchrun --nproc-per-node N stopped_worker.py runs.json

runs.json: [[override, ...], ...]. Each goes to the end once, into OUTPUT_DIR/whole, and in OUTPUT_DIR/stopped by as
many starts as there are MOMENTS, stopped at one each, and a last one. The signal reaches the last rank alone.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sppo_megatron.cluster import interrupt
from sppo_megatron.config.compose import compose_config
from sppo_megatron.policy.policy import Policy
from sppo_megatron.policy.step.forward_step import ForwardStep
from sppo_megatron.rollout.registry import check_run
from sppo_megatron.train import command as train

RANK, RANKS = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


class Alarm:
    """SIGTERM at the `count`-th call, from 1, of a micro-batch's forward pass within the `number`-th call of a method.

    computed: how many forward passes that call has computed, whole.
    """

    def __init__(self, method: str, number: int, count: int) -> None:
        self.method, self.number, self.count = method, number, count
        self.calls = self.passes = self.computed = 0
        self._methods: list[tuple[type, str, Callable]] = []

    def __enter__(self) -> Alarm:
        self._wrap(Policy, self.method, self._within)
        self._wrap(ForwardStep, "__call__", self._pass)
        return self

    def __exit__(self, *_: object) -> None:
        for owner, name, method in self._methods:
            setattr(owner, name, method)

    def _wrap(self, owner: type, name: str, around: Callable) -> None:
        method = getattr(owner, name)
        self._methods.append((owner, name, method))
        setattr(owner, name, lambda *arguments, **options: around(method, *arguments, **options))

    def _within(self, method: Callable, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        return method(*arguments, **options)

    def _pass(self, method: Callable, step: ForwardStep, batches: Iterator, model: Any) -> Any:
        if self.calls == self.number:
            self.passes += 1
            if self.passes == self.count and RANK == RANKS - 1:
                os.kill(os.getpid(), signal.SIGTERM)
        taken = False

        def watched() -> Iterator:
            nonlocal taken
            batch = next(batches)
            taken = True
            yield batch

        result = method(step, watched(), model)
        self.computed += taken and self.calls == self.number
        return result


@contextmanager
def during_export(number: int) -> Iterator[None]:
    """SIGTERM before the number-th tensor that leaves, from 1; asked for at each."""
    original = Policy.export_weights

    def export_weights(policy: Policy) -> Iterator:
        def watched() -> Iterator:
            for place, pair in enumerate(policy.model.export_weights(policy.chunks, policy.groups), 1):
                if place == number and RANK == RANKS - 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield pair

        return interrupt.until_told(watched(), policy.device)

    bytes_between = interrupt.BYTES_BETWEEN_QUESTIONS
    interrupt.BYTES_BETWEEN_QUESTIONS = 1
    Policy.export_weights = export_weights  # type: ignore[method-assign]
    try:
        yield
    finally:
        Policy.export_weights = original  # type: ignore[method-assign]
        interrupt.BYTES_BETWEEN_QUESTIONS = bytes_between


MOMENTS = (  # in the process that begins, and then in each that continues it
    lambda: Alarm("compute_log_probs", 2, 2),  # of the second iteration
    lambda: Alarm("train_step", 1, 2),
    lambda: during_export(3),
)


def run(overrides: list[str]) -> int:
    config, composed = compose_config(overrides)
    check_run(config, RANKS)
    try:
        return train.run(config, composed)
    finally:
        gc.collect()


def main() -> None:
    train.set_up_logging(rank=1)
    for overrides in json.loads(Path(sys.argv[1]).read_text()):
        output = next(value.partition("=")[2] for value in overrides if value.startswith("output_dir="))
        assert run([*overrides, f"output_dir={output}/whole"]) == 0
        arguments = [*overrides, f"output_dir={output}/stopped"]
        for place, moment in enumerate(MOMENTS):
            with moment() as alarm:
                code = run(arguments if place == 0 else [*arguments, "checkpoint.load=latest"])
            assert code == train.EXIT_PREEMPTED, f"{output} at moment {place}: exit code {code}"
            if alarm is not None:
                assert alarm.calls == alarm.number, f"{output} at moment {place}: {vars(alarm)}"
            if alarm is not None and RANK == RANKS - 1:  # the schedule went on to its end, but computed nothing more
                assert alarm.passes > alarm.count and alarm.computed == alarm.count - 1, f"{output}: {vars(alarm)}"
            assert not Path(output, "stopped", "hf").exists()
        assert run([*arguments, "checkpoint.load=latest"]) == 0


if __name__ == "__main__":
    main()
