"""Programs on their tests: what passes, what doesn't, and that neither a hang nor a flood gets out of the process."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from sppo_megatron.config import RewardConfig
from sppo_megatron.config.reward import CodeConfig
from sppo_megatron.rewards.code import code, program_of, read_cases
from sppo_megatron.rewards.registry import build_scorer, check_scorer
from sppo_megatron.types import Group, Prompt, Response

ADD = "def add(a, b):\n    return a + b\n"
ASSERTS = json.dumps(["assert add(1, 2) == 3", "assert add(-1, 1) == 0"])
SUMS = json.dumps({"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]})
READ = "a, b = map(int, input().split())\nprint(a + b)"


def score(program: str, tests: str, seconds: float = 20.0, partial_credit: bool = False) -> tuple[float, bool | None]:
    return code(program, tests, sandbox=None, memory=1 << 30, seconds=seconds, partial_credit=partial_credit)


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("print(1)", "print(1)"),
        ("```python\nprint(1)\n```", "print(1)\n"),
        ("Try\n```python\nprint(1)\n```\nor better\n```py\nprint(2)\n```\nin a shell\n```bash\nls\n```", "print(2)\n"),
        ("```\nprint(1)\n```", "print(1)\n"),
        ("```python\nprint(1)", "print(1)"),  # cut off
    ],
)
def test_the_program(response, program):
    assert program_of(response) == program


@pytest.mark.parametrize(
    ("program", "tests", "right"),
    [
        (ADD, ASSERTS, True),
        (ADD, "assert add(1, 2) == 3\nassert add(2, 2) == 4", True),
        (ADD.replace("+", "-"), ASSERTS, False),
        (READ, SUMS, True),
        (READ + "\nprint()", SUMS, True),  # empty lines at the end
        (READ.replace("a + b", "a * b"), SUMS, False),
        (READ, json.dumps([{"input": "1 2", "output": "3"}]), True),
        ("import sys\nsys.exit(0)", ASSERTS, False),  # ends before its tests
        ("import os\nos._exit(0)", ASSERTS, False),
        ("print(3)\nraise ValueError", SUMS, False),
        ("def add(a, b:", ASSERTS, False),
    ],
)
def test_verdicts(program, tests, right):
    assert score(program, tests) == (float(right), right)


def test_partial_credit():
    program = "def add(a, b):\n    return 3\n"
    assert score(program, ASSERTS) == (0.0, False)
    assert score(program, ASSERTS, partial_credit=True) == (0.5, False)


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time\ntime.sleep(60)",
        "x = bytearray(2 << 30)",
        "open('big', 'wb').write(b'x' * (4 << 20))",
        "files = [open(f'{i}', 'w') for i in range(100)]",
        "while True: print('x' * 1000)",
        "import socket\nsocket.create_connection(('127.0.0.1', {port}), 5)",
    ],
    ids=["cpu", "sleep", "memory", "file", "files", "output", "network"],
)
def test_limits(program):
    """Whatever it does, it fails on its test, in time. The listener shows that the network would be there."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        started = time.monotonic()
        program = program.replace("{port}", str(server.getsockname()[1]))
        assert score(program, '["assert True"]', seconds=3.0) == (0.0, False)
    assert time.monotonic() - started < 30


def test_what_it_starts_ends_with_it(tmp_path: Path):
    program = (
        "import os, sys, time\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        f"        open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "        time.sleep(600)\n    os._exit(0)\n"
        f"while not os.path.exists({str(tmp_path / 'pid')!r}): time.sleep(0.01)\n"
    )
    assert score(program, '["assert True"]') == (1.0, True)
    pid = int((tmp_path / "pid").read_text() or 0)
    assert pid and not (psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("", "no tests"),
        ("[]", "no tests"),
        ("{}", "no tests"),
        ("[1]", "no tests"),
        ('[{"input": "1"}]', "no tests"),
        ('{"inputs": ["1"], "outputs": []}', "1 inputs and 0 outputs"),
        ("assert (", "neither JSON nor Python"),
        ('["assert ("]', "neither JSON nor Python"),
    ],
)
def test_answers_that_hold_no_tests(answer, said):
    with pytest.raises(ValueError, match=said):
        read_cases(answer)


def own_sandbox(program, cases, seconds):
    """A sandbox of the user's."""
    return [case["test"] in program for case in cases]


def test_by_the_registry_in_a_worker_here_or_elsewhere():
    responses = [Response(np.zeros(1, np.int32), text) for text in (f"```python\n{ADD}```", "def add(a, b): return 3")]
    group = Group(Prompt(0, np.array([5], np.int32), "p", ASSERTS), responses)
    for settings, rewards in (
        (CodeConfig(partial_credit=True), [1.0, 0.5]),
        (CodeConfig(sandbox="tests.unit.rewards.test_code:own_sandbox"), [0.0, 0.0]),
    ):
        scorer = build_scorer(RewardConfig(kind="code", code=settings, num_workers=1, timeout_s=60.0))
        try:
            [scored] = scorer.score([group])
        finally:
            scorer.close()
        assert [(r.reward, r.error) for r in scored.responses] == [(reward, None) for reward in rewards]


def test_a_sandbox_that_there_is_not():
    [said] = check_scorer(RewardConfig(kind="code", code=CodeConfig(sandbox="nowhere:run")))
    assert "reward.code.sandbox='nowhere:run'" in said and "cannot import 'nowhere'" in said
