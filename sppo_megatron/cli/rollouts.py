"""sppo rollouts: prints the stored rollouts of a run as JSONL, one group a line.

    sppo rollouts outputs/first > rollouts.jsonl
    sppo rollouts outputs/first --iteration 3 | head -1

`rollout=replay rollout.path=rollouts.jsonl` reads what it prints.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from sppo_megatron.cluster.exit_codes import exit_code_of
from sppo_megatron.data.rollout_file import group_line, iterate_groups, iteration_files
from sppo_megatron.errors import ConfigError


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="sppo rollouts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output_dir", type=Path, help="the output_dir of a run, or one file of its rollouts/")
    parser.add_argument("--iteration", type=int, help="only this one, counted from 0")
    options = parser.parse_args(arguments)
    return exit_code_of("printing", lambda: _print(options.output_dir, options.iteration))


def _print(source: Path, iteration: int | None) -> int:
    try:
        for path in rollout_files(source, iteration):
            try:
                for group in iterate_groups(path):
                    sys.stdout.buffer.write(group_line(group))
            except ValueError as error:
                raise ConfigError(str(error)) from None
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` for example, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def rollout_files(source: Path, iteration: int | None = None) -> Iterator[Path]:
    """The files of a run's rollouts in the order of its iterations. Raises ConfigError if there are none."""
    if source.is_file():
        yield source
        return
    paths = iteration_files(source / "rollouts", iteration)
    if not paths:
        of_iteration = "" if iteration is None else f" of iteration {iteration}"
        raise ConfigError(f"{source} holds no rollouts{of_iteration}: give the output_dir of a run")
    yield from paths


if __name__ == "__main__":
    sys.exit(main())
