"""The ranks of a job examined together: what differs between them, who computes wrong values, who is slow."""

from __future__ import annotations

import platform
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist

from sppo_doctor.collectives import Mistake, check_collectives, suspects
from sppo_doctor.connectivity import wait_for_all
from sppo_doctor.devices import driver_version, nccl_version
from sppo_doctor.finding import OK, PROBLEM, WARNING, Finding
from sppo_doctor.links import Link, Pair, measure_all_reduce, measure_compute, measure_links
from sppo_doctor.packages import PACKAGES, installed_version
from sppo_doctor.stragglers import slow_pairs, slow_ranks

AREA = "ranks"


@dataclass(frozen=True)
class RankReport:
    """What one rank says of itself and found out. compute: FLOP/s. all_reduce: bytes per second."""

    host: str
    device: str
    versions: dict[str, str]
    mistakes: list[Mistake]
    compute: float
    all_reduce: float
    links: dict[Pair, Link]

    def as_json(self) -> dict[str, Any]:
        links = [{"ranks": pair, **asdict(link)} for pair, link in self.links.items()]
        return asdict(self) | {"links": links}


def describe_versions() -> dict[str, str]:
    """What every rank should have the same of."""
    found = {package.name: installed_version(package) for package in PACKAGES}
    packages = {
        name: "not installed" if version is None else " ".join(version).removeprefix(f"{name} ")
        for name, version in found.items()
    }
    return packages | {
        "Python": platform.python_version(),
        "CUDA": torch.version.cuda or "none",
        "NCCL": nccl_version() or "none",
        "driver": driver_version() or "none",
    }


def examine_ranks(
    group: dist.ProcessGroup, control: dist.ProcessGroup, device: torch.device, timeout_s: float
) -> list[RankReport]:
    """The report of each rank, in order, the same on every rank. Collective.

    group: what is tested. control: the same ranks on gloo, for barriers and reports alone. Raises RuntimeError if a
    rank doesn't come to a barrier within timeout_s seconds, on the first rank with its name.
    """

    def barrier() -> None:
        wait_for_all(control, timeout_s)

    barrier()
    mistakes = check_collectives(group, device)
    barrier()
    compute = measure_compute(device)
    links = measure_links(group, device, barrier)
    barrier()
    report = RankReport(
        host=socket.gethostname(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        versions=describe_versions(),
        mistakes=mistakes,
        compute=compute,
        all_reduce=measure_all_reduce(group, device),
        links=links,
    )
    reports: list[Any] = [None] * control.size()
    dist.all_gather_object(reports, report, group=control)
    return reports


def judge_ranks(reports: Sequence[RankReport]) -> Iterator[Finding]:
    """Names the ranks that differ, compute wrong values or are slow."""
    hosts = len({report.host for report in reports})
    yield Finding(AREA, "connectivity", OK, f"{len(reports)} ranks on {hosts} host{'s' * (hosts > 1)}")
    yield from _differences(reports)
    yield from _wrong_values(reports)
    yield from _speed(reports)


def _differences(reports: Sequence[RankReport]) -> Iterator[Finding]:
    described = [report.versions | {"device": report.device} for report in reports]
    same = True
    for name in described[0]:
        values = [description[name] for description in described]
        usual = Counter(values).most_common(1)[0][0]
        for value in sorted(set(values) - {usual}):
            same = False
            text = f"{name} {value}, and {usual} on the others"
            yield Finding(
                AREA, _ranks(i for i, v in enumerate(values) if v == value), PROBLEM, text, "install the same"
            )
    if same:
        yield Finding(AREA, "versions", OK, "the same on every rank")


def _wrong_values(reports: Sequence[RankReport]) -> Iterator[Finding]:
    mistakes = [mistake for report in reports for mistake in report.mistakes]
    for rank in suspects(mistakes):
        names = {mistake.collective for mistake in mistakes if rank in (mistake.contributor, mistake.receiver)}
        text = f"wrong values in {', '.join(sorted(names))}, sent or received by it ({reports[rank].host})"
        yield Finding(AREA, _ranks([rank]), PROBLEM, text, "take its device and its link out of service")
    if not mistakes:
        yield Finding(AREA, "collectives", OK, "known values came back right from and to every rank")


def _speed(reports: Sequence[RankReport]) -> Iterator[Finding]:
    hosts, compute = [report.host for report in reports], [report.compute for report in reports]
    links = {pair: link for report in reports for pair, link in report.links.items()}
    slow = slow_ranks(compute, links, hosts)
    for rank, reason in slow.items():
        fix = "look for another program, clocks, cooling or the network interface on its host"
        yield Finding(AREA, _ranks([rank]), PROBLEM, f"slow: {reason} ({hosts[rank]})", fix)
    for (a, b), reason in slow_pairs(links, hosts, slow).items():
        yield Finding(AREA, _ranks([a, b]), WARNING, f"slow between them: {reason}", "look at the link between them")
    if not slow:
        text = f"{min(compute):.3g} to {max(compute):.3g} FLOP/s"
        text += f", all-reduce {min(report.all_reduce for report in reports) / 1e9:.3g} GB/s"
        yield Finding(AREA, "speed", OK, text)


def _ranks(ranks: Any) -> str:
    return f"rank {', '.join(map(str, ranks))}"
