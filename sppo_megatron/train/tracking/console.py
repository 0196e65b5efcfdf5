"""What the user sees: a progress bar, over the iterations of a run for example, and a summary at the end."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from sppo_megatron.train.tracking.metrics_file import to_plain

# Metric, its name on the screen, how it is written. A metric that is absent is left out.
COLUMNS = (
    ("reward_mean", "reward", ".3f"),
    ("loss", "loss", ".4g"),
    ("log_ratio_abs_max", "|log-ratio|", ".3g"),
    ("mismatch_mean", "mismatch", ".1g"),
    ("tokens_per_second", "tokens/s", ",.0f"),
)


class ProgressDisplay:
    """A bar in a terminal, one plain line per update anywhere else (a log file, CI). Use as a context manager.

    total: units of the whole run. completed: those done before a resume. enabled: whether this rank shows anything.
    unit: what is counted.
    """

    def __init__(
        self,
        total: int,
        completed: int = 0,
        enabled: bool = True,
        console: rich.console.Console | None = None,
        unit: str = "iteration",
    ) -> None:
        self.total = total
        self.unit = unit
        self.enabled = enabled
        self.console = console or rich.console.Console()
        self._bar: Progress | None = None
        if enabled and self.console.is_terminal:
            self._bar = Progress(
                TextColumn(unit),
                MofNCompleteColumn(),
                BarColumn(bar_width=24),
                TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"),
                console=self.console,
            )
            self._task = self._bar.add_task("", total=total, completed=completed, numbers="")

    def update(self, completed: int, metrics: Mapping[str, Any]) -> None:
        """completed: units done. metrics: the latest, by name; COLUMNS says which are shown."""
        if not self.enabled:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=completed, numbers=_line(metrics))
        else:
            print(f"{self.unit} {completed}/{self.total}  {_line(metrics)}", file=self.console.file, flush=True)

    def __enter__(self) -> ProgressDisplay:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


@contextlib.contextmanager
def counting(unit: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on standard error if that is a terminal, else nothing. The block calls what it gets once per unit done."""
    console, done = rich.console.Console(stderr=True), itertools.count(1)
    with ProgressDisplay(total, enabled=console.is_terminal, console=console, unit=unit) as display:
        yield lambda: display.update(next(done), {})


def print_summary(
    before: Mapping[str, float],
    after: Mapping[str, float],
    output_dir: str,
    next_steps: Sequence[tuple[str, str]] = (),
    *,
    seconds: float | None = None,
    console: rich.console.Console | None = None,
) -> None:
    """A table of the evaluation before and after the training, where everything lies, and what to do with it.

    before, after: evaluation metrics by name, either may be empty. next_steps: (what it does, the command).
    seconds: what the run took.
    """
    console = console or rich.console.Console()
    names = [*before, *(name for name in after if name not in before)]
    if names:
        table = Table("evaluation", title="SPPO finished", title_justify="left")
        for heading in ("before", "after", "change"):
            table.add_column(heading, justify="right")
        for name in names:
            old, new = to_plain(before.get(name)), to_plain(after.get(name))
            change = "" if old is None or new is None else f"{new - old:+.3f}"
            table.add_row(name, _written(old, ".3f"), _written(new, ".3f"), change)
        console.print(table)
    if seconds is not None:
        console.print(f"took {_duration(seconds)}", markup=False, highlight=False)
    # Paths and commands are printed whole, without colours or wrapping, so that they can be copied.
    for what, command in (("output", output_dir), *next_steps):
        console.print(f"{what}: {command}", markup=False, highlight=False, soft_wrap=True)


def _line(metrics: Mapping[str, Any]) -> str:
    shown = [f"{label} {_written(to_plain(metrics[key]), form)}" for key, label, form in COLUMNS if key in metrics]
    return "  ".join(shown)


def _written(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
