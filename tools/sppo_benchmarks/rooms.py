"""How many files and rooms one iteration walks through: the real command in this process, every Python call watched.

    python -m sppo_benchmarks.rooms model.hf_path=... data.train_path=... rollout.engine=vllm     # `make rooms`

The arguments are Hydra overrides of `sppo_megatron.train`. A room is a folder (or module) at the top of the package; a
move is a change of room between two consecutive calls of its functions. Of each stage the last call of the run counts.
What stands in for CUDA on a CPU, `megatron_cpu`, is counted in the first figures and left out of the second.
With --path every call is printed, the consecutive ones of a file on one line.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import sppo_megatron

STAGES = ("_prepare", "_train_step", "_push")
PACKAGE = str(Path(sppo_megatron.__file__).parent) + "/"


@dataclass
class Walk:
    """calls: (file, function) of the package, in order; a generator that goes on is a call, too."""

    calls: list[tuple[str, str]] = field(default_factory=list)

    @property
    def files(self) -> set[str]:
        return {file for file, _ in self.calls}

    @property
    def moves(self) -> int:
        return sum(a != b for a, b in pairwise(file.split("/")[0] for file, _ in self.calls))

    def outside(self, room: str) -> Walk:
        """The calls of all other rooms."""
        return Walk([call for call in self.calls if not call[0].startswith(f"{room}/")])

    def lines(self) -> list[str]:
        """The functions of each stay in a file; one that is called several times in a row is written once."""
        stays = groupby(self.calls, key=lambda call: call[0])
        return [f"{file}: {' '.join(name for name, _ in groupby(n for _, n in stay))}" for file, stay in stays]


def watched(function: Callable[..., Any], walk: Walk) -> Callable[..., Any]:
    """The function, whose last call is what `walk` holds. Other threads aren't watched."""

    def notice(frame: Any, event: str, argument: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(PACKAGE):
            walk.calls.append((name[len(PACKAGE) :], frame.f_code.co_name))

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        walk.calls.clear()
        sys.setprofile(notice)
        try:
            return function(*arguments, **named)
        finally:
            sys.setprofile(None)

    return call


def walk_through(overrides: Sequence[str]) -> dict[str, Walk]:
    """The walk of each stage of a run."""
    from sppo_megatron.train import command
    from sppo_megatron.train.loop import Trainer

    walks = {stage: Walk() for stage in STAGES}
    originals = {stage: getattr(Trainer, stage) for stage in STAGES}
    try:
        for stage, original in originals.items():
            setattr(Trainer, stage, watched(original, walks[stage]))
        if code := command.main([*overrides, "logger.progress=false"]):
            raise SystemExit(code)
    finally:
        for stage, original in originals.items():
            setattr(Trainer, stage, original)
    return walks


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("sppo_benchmarks.rooms", description=__doc__)
    parser.add_argument("--path", action="store_true", help="print every stay in a file")
    options, overrides = parser.parse_known_args(arguments)
    walks = walk_through(overrides)
    for stage, walk in walks.items():
        if options.path:
            print(f"\n== {stage}", *walk.lines(), sep="\n   ")
    without_cpu = {stage: walk.outside("megatron_cpu") for stage, walk in walks.items()}
    for stage in walks:
        print(_row(stage, [walks[stage]], [without_cpu[stage]]))
    print(_row("iteration", list(walks.values()), list(without_cpu.values())))


def _row(name: str, *countings: list[Walk]) -> str:
    texts = []
    for walks in countings:
        files = set[str]().union(*(walk.files for walk in walks))
        texts.append(f"{len(files):3} files {sum(walk.moves for walk in walks):4} moves")
    return f"{name:12} {texts[0]}   on CUDA {texts[1]}"


if __name__ == "__main__":
    main()
