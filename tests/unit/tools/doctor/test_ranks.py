"""The verdict over reports of ranks. Real ranks that report: tests/distributed/diagnosis."""

from __future__ import annotations

from dataclasses import replace

from sppo_doctor.collectives import Mistake
from sppo_doctor.finding import exit_code
from sppo_doctor.links import Link
from sppo_doctor.ranks import RankReport, describe_versions, judge_ranks

REPORT = RankReport(
    host="a",
    device="cpu",
    versions={"torch": "2.13.0", "NCCL": "2.30"},
    mistakes=[],
    compute=1e12,
    all_reduce=1e9,
    links={(0, 1): Link(1e-5, 1e10)},
)


def problems(*reports: RankReport) -> dict[str, str]:
    findings = list(judge_ranks(reports))
    found = {finding.subject: finding.text for finding in findings if finding.status == "problem"}
    assert exit_code(findings) == bool(found)
    return found


def test_equals():
    assert problems(REPORT, REPORT) == {}


def test_every_version_that_differs_is_named():
    other = replace(REPORT, versions={"torch": "2.11.0", "NCCL": "2.30"})
    assert problems(REPORT, other, REPORT, REPORT) == {"rank 1": "torch 2.11.0, and 2.13.0 on the others"}
    third = replace(REPORT, device="H100")
    assert problems(REPORT, other, REPORT, third, third, REPORT, REPORT) == {
        "rank 1": "torch 2.11.0, and 2.13.0 on the others",
        "rank 3, 4": "device H100, and cpu on the others",
    }


def test_wrong_values_name_their_collectives():
    receiver = replace(REPORT, mistakes=[Mistake("broadcast", 2, 0), Mistake("all_gather", 2, 0)])
    other = replace(REPORT, mistakes=[Mistake("broadcast", 2, 1)])
    found = problems(receiver, other, replace(REPORT, host="b"))
    assert found == {"rank 2": "wrong values in all_gather, broadcast, sent or received by it (b)"}


def test_slow_ranks_are_problems_and_slow_pairs_warnings():
    assert "slow: computes" in problems(REPORT, replace(REPORT, compute=1e11))["rank 1"]
    links = {(a, b): Link(1e-5, 1e10) for a in range(3) for b in range(a + 1, 3)} | {(1, 2): Link(1e-5, 1e8)}
    findings = list(judge_ranks([replace(REPORT, links=links)] * 3))
    assert [finding.subject for finding in findings if finding.status == "warning"] == ["rank 1, 2"]
    assert exit_code(findings) == 0


def test_what_is_compared():
    assert {"torch", "megatron-core", "transformer-engine", "vllm", "triton", "NCCL", "driver"} <= set(
        describe_versions()
    )
