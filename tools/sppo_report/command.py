"""sppo report: one self-contained HTML page from the output folder of a run, or of several side by side.

The page opens from disk without a network: curves, warnings with what to try, and responses of each iteration with
every token coloured by its log-ratio. docs/report.md says how to read it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sppo_megatron.cluster.exit_codes import exit_code_of
from sppo_megatron.data.atomic_file import write_atomically
from sppo_megatron.errors import ConfigError
from sppo_megatron.train.tracking.console import counting
from sppo_report.page import build_page
from sppo_report.report_data import build_report
from sppo_report.run_folder import Run, names_of, read_run
from sppo_report.samples import SampleLimits


def main(arguments: Sequence[str] | None = None) -> int:
    defaults = SampleLimits()
    parser = argparse.ArgumentParser(prog="sppo report", description=str(__doc__).splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the output_dir of a run")
    parser.add_argument("--output", type=Path, help="the page (default: report.html in the folder of the only run)")
    parser.add_argument("--tokenizer", type=Path, help="a folder with tokenizer.json (default: the run's own)")
    counts = parser.add_argument_group("how much of the responses goes into the page")
    counts.add_argument("--iterations", type=_count, default=defaults.iterations, help="of a run (%(default)s)")
    counts.add_argument("--samples", type=_count, default=defaults.responses, help="of an iteration (%(default)s)")
    counts.add_argument("--tokens", type=_count, default=defaults.tokens, help="of a response (%(default)s)")
    options = parser.parse_args(arguments)
    if options.output is None and len(options.runs) > 1:
        parser.error("several runs need --output, the page to write")
    return exit_code_of("the report", lambda: _write_report(options))


def _write_report(options: argparse.Namespace) -> int:
    runs = [read_run(folder, name) for folder, name in zip(options.runs, names_of(options.runs), strict=True)]
    limits = SampleLimits(options.iterations, options.samples, options.tokens)
    with counting("rollout file", sum(min(limits.iterations, len(run.rollout_files)) for run in runs)) as advance:
        data = build_report(runs, limits, tokenizer=options.tokenizer, advance=advance)
    output = options.output or options.runs[0] / "report.html"
    page = build_page(data)
    try:
        write_atomically(output, page)
    except OSError as error:
        raise ConfigError(f"{output} can't be written: {error.strerror}") from error
    for run, shown in zip(runs, data["runs"], strict=True):
        _print_run(run, shown)
    print(f"wrote {output}: {_size(len(page))}")
    return 0


def _print_run(run: Run, shown: dict) -> None:
    samples = sum(len(iteration["samples"]) for iteration in shown["iterations"])
    print(
        f"{run.name}: {len(run.steps)} optimizer steps, {_size(run.num_bytes)} on disk; {samples} responses of "
        f"{len(shown['iterations'])} of {len(run.rollout_files)} rollout files"
    )
    for problem in run.problems:
        print(f"  {problem}")
    for warning in shown["warnings"]:
        print(f"  warning: {warning['title']}. {warning['seen']}")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _size(num_bytes: int) -> str:
    for unit, bytes_in in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= bytes_in:
            return f"{num_bytes / bytes_in:.3g} {unit}"
    return f"{num_bytes} bytes"


if __name__ == "__main__":
    sys.exit(main())
