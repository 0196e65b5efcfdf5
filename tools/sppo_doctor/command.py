"""sppo doctor: what works on this machine and what doesn't: versions, GPUs, fused kernels, a configuration's needs.

    sppo doctor                                      this machine
    sppo doctor experiment=demo precision=mxfp8      ... and whether it can do what these overrides ask for
    torchrun ... -m sppo_doctor.command --distributed      the ranks of a job, on one or many nodes

Exit code 0, or 1 if something can't work.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sppo_doctor.finding import NOTE, OK, PROBLEM, WARNING, Finding, exit_code
from sppo_megatron.errors import ConfigError

if TYPE_CHECKING:
    from sppo_doctor.ranks import RankReport

COLOURS = {OK: "green", NOTE: "dim", WARNING: "yellow", PROBLEM: "bold red"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="sppo doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, as of sppo_megatron.train")
    parser.add_argument("--config-dir", help="one more folder of config groups and experiments")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--distributed", action="store_true", help="under torchrun: examine the ranks together")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="how long a rank is waited for")
    options = parser.parse_args(arguments)
    if options.distributed and options.overrides:
        parser.error("--distributed examines the ranks alone: give overrides to a run without it, on each node")
    if options.distributed and "RANK" not in os.environ:
        parser.error("--distributed examines the ranks of a job: start it with torchrun")
    warnings.filterwarnings("ignore", module=r"torch\..*")
    if options.distributed:
        return _examine_ranks(options)
    findings = [*check_machine(), *check_overrides(options.overrides, options.config_dir)]
    _print(findings, [], options.json)
    return exit_code(findings)


def check_machine() -> Iterator[Finding]:
    """What is installed here, and whether it works. A torch that can't be imported ends it."""
    from sppo_doctor.packages import PACKAGES, check_apex, check_packages, import_error

    problem = import_error("torch")
    if problem is not None:
        yield Finding("packages", "torch", PROBLEM, f"can't be imported: {problem}", PACKAGES[0].fix)
        return
    import torch

    from sppo_doctor.devices import check_devices, driver_version
    from sppo_doctor.fused_paths import check_fused_paths

    yield from check_devices(driver_version())
    yield from check_packages(cuda=torch.cuda.is_available())
    yield check_apex()
    yield from check_fused_paths()


def check_overrides(overrides: Sequence[str], config_dir: str | None) -> Iterator[Finding]:
    """What the configuration asks for and can't work here. Nothing without overrides."""
    if not overrides:
        return
    from sppo_doctor.features import check_features
    from sppo_megatron.config.compose import compose_config

    has_model = True
    try:
        try:
            config, _ = compose_config(overrides, extra_folder=config_dir)
        except ConfigError:
            # A model is the one thing that every run must name, and the doctor can do without.
            config, _ = compose_config([*overrides, "model.hf_path=none"], extra_folder=config_dir)
            has_model = False
    except ConfigError as error:
        yield Finding("configuration", "overrides", PROBLEM, str(error))
        return
    yield from (finding for finding in check_features(config) if has_model or finding.subject != "model.hf_path")


def _examine_ranks(options: argparse.Namespace) -> int:
    """The first rank prints and has the exit code: torchrun ends every process as soon as one has failed."""
    import torch.distributed as dist

    from sppo_doctor.connectivity import join_job, new_control_group
    from sppo_doctor.ranks import AREA, examine_ranks, judge_ranks

    is_first = os.environ.get("RANK", "0") == "0"
    try:
        group, device = join_job(options.timeout)
        reports = examine_ranks(group, new_control_group(options.timeout), device, options.timeout)
        dist.destroy_process_group()
    except RuntimeError as error:
        if not is_first:
            time.sleep(options.timeout)  # the first rank knows more, unless it is the one that is missing
        findings = [Finding(AREA, "connectivity", PROBLEM, str(error).splitlines()[0], "see the output of those ranks")]
        _print(findings, [], options.json)
        return exit_code(findings)
    findings = list(judge_ranks(reports))
    if is_first:
        _print(findings, reports, options.json)
    return exit_code(findings) if is_first else 0


def _print(findings: Sequence[Finding], reports: Sequence[RankReport], as_json: bool) -> None:
    if as_json:
        ranks = [report.as_json() for report in reports]
        print(json.dumps({"findings": [asdict(finding) for finding in findings], "ranks": ranks}), flush=True)
        return
    console = Console()
    table = Table("", "", "", "what was found", "what to do")
    for finding in findings:
        status = f"[{COLOURS[finding.status]}]{finding.status}[/]"
        subject, text, fix = map(escape, (finding.subject, finding.text, finding.fix or ""))
        table.add_row(finding.area, subject, status, text, fix)
    console.print(table)
    if reports:
        console.print(_rank_table(reports))
    problems = sum(finding.status == PROBLEM for finding in findings)
    console.print(f"{problems} problem{'s' * (problems != 1)}")


def _rank_table(reports: Sequence[RankReport]) -> Table:
    table = Table("rank", "host", "device", "GFLOP/s", "best latency µs", "best bandwidth GB/s", "worst bandwidth GB/s")
    for rank, report in enumerate(reports):
        links = list(report.links.values())
        figures = [report.compute / 1e9]
        if links:
            bandwidths = [link.bandwidth / 1e9 for link in links]
            figures += [min(link.latency for link in links) * 1e6, max(bandwidths), min(bandwidths)]
        table.add_row(str(rank), report.host, report.device, *(f"{figure:.3g}" for figure in figures))
    return table


if __name__ == "__main__":
    sys.exit(main())
