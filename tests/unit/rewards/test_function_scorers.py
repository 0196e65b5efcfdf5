"""Scoring with real worker processes, and reward functions that raise, hang, die and lie."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from sppo_megatron.config import RewardConfig
from sppo_megatron.rewards.registry import build_scorer
from sppo_megatron.types import Group, Prompt, Response

HOSTILE = """
import math, os, sys, time

def hostile(prompt, response, answer):
    if response == "raise": raise KeyError("boom")
    if response == "hang":
        open("hanging", "w").close()
        while True: pass
    if response == "sleep": time.sleep(1000)
    if response == "die": os._exit(7)
    if response == "exit": sys.exit(3)
    if response == "none": return None
    if response == "nan": return math.nan
    if response == "text": return "1.0"
    if response == "unpicklable": return lambda: 1
    return float(response), prompt == answer

def process_id(prompt, response, answer):
    return float(os.getpid())

def main_module_is_empty(prompt, response, answer):
    return not hasattr(sys.modules["__main__"], "RAN")

def only_in_the_trainer(prompt, response, answer):
    return 1.0

def not_in_a_worker():
    import multiprocessing
    if multiprocessing.parent_process() is not None:
        raise RuntimeError("no licence here")
"""
PACKAGE_ROOT = Path(__file__).parents[3]


@pytest.fixture
def rewards_folder(tmp_path, monkeypatch):
    (tmp_path / "hostile_rewards.py").write_text(HOSTILE)
    (tmp_path / "picky_rewards.py").write_text("from hostile_rewards import *\nnot_in_a_worker()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("hostile_rewards", "picky_rewards"):
        sys.modules.pop(name, None)


def make_group(*texts, prompt="p", answer="a", index=0):
    responses = [Response(np.array([1, 2], dtype=np.int32), text) for text in texts]
    return Group(Prompt(index, np.array([5], dtype=np.int32), prompt, answer), responses)


def function_config(name, **settings):
    return RewardConfig(kind="function", function=name, **settings)


def test_each_failure_costs_its_own_response(rewards_folder, caplog):
    bad = {
        "raise": "KeyError: 'boom'",
        "hang": "reward.timeout_s=0.5",
        "die": "died",
        "exit": "SystemExit",
        "none": "returned None",
        "nan": "returned nan",
        "text": "returned '1.0'",
        "unpicklable": "not a finite number",
        "sleep": "reward.timeout_s=0.5",
    }
    texts = [text for number, kind in enumerate(bad) for text in (str(number), kind)] + ["99"]
    groups = [make_group(*texts[:9], prompt="a"), make_group(*texts[9:])]
    config = function_config("hostile_rewards:hostile", timeout_s=0.5, default=-2.0)
    with build_scorer(config) as scorer, caplog.at_level(logging.WARNING):
        groups = scorer.score(groups)
    responses = [response for group in groups for response in group.responses]
    assert [response.text for response in responses] == texts
    for number, response in enumerate(responses):
        if response.text in bad:
            assert response.reward == -2.0
            assert response.correct is False
            assert bad[response.text] in response.error
        else:
            assert response.reward == float(response.text)
            assert response.correct is (number < 9)  # the first group's prompt is its answer
            assert response.error is None
    (record,) = caplog.records
    assert f"failed on {len(bad)} of {len(texts)} responses" in record.message
    assert "KeyError: 'boom'" in record.message


def test_a_row_of_deaths_breaks_nothing(rewards_folder):
    """Now and then the pool itself breaks when a worker dies at once; the blame must still fall on the right one."""
    texts = ["1", "die", "die", "2", "die", "3"]
    with build_scorer(function_config("hostile_rewards:hostile", num_workers=2)) as scorer:
        (group,) = scorer.score([make_group(*texts)])
    for response in group.responses:
        assert (response.error is None) == (response.text != "die"), response
        assert response.reward == (0.0 if response.text == "die" else float(response.text))


def test_a_pool_whose_workers_were_killed_between_calls_is_replaced(rewards_folder):
    """As the system does when memory runs out: no response is to blame, and none may pay."""
    with build_scorer(function_config("hostile_rewards:hostile", num_workers=1)) as scorer:
        scorer.score([make_group("1")])
        for process in workers_of(os.getpid()):
            process.kill()
        time.sleep(0.5)  # until the pool has seen it
        (group,) = scorer.score([make_group("2", "3", "die", "4")])
    assert [response.reward for response in group.responses] == [2.0, 3.0, 0.0, 4.0]


def test_workers_start_once_and_end_with_close(rewards_folder):
    scorer = build_scorer(function_config("hostile_rewards:process_id", num_workers=2))
    assert not workers_of(os.getpid()), "workers must start lazily"
    processes = set()
    for _ in range(3):
        (group,) = scorer.score([make_group(*"abcdefgh")])
        processes |= {response.reward for response in group.responses}
    assert len(processes) <= 2
    assert os.getpid() not in processes
    scorer.close()
    assert not any(psutil.pid_exists(int(process)) for process in processes)


def test_a_function_that_only_imports_in_the_trainer_ends_the_run(rewards_folder):
    """Every response would get the default: no training on that."""
    with (
        build_scorer(function_config("picky_rewards:only_in_the_trainer", num_workers=1)) as scorer,
        pytest.raises(RuntimeError, match="picky_rewards:only_in_the_trainer' don't start"),
    ):
        scorer.score([make_group("a")])


SCRIPT = """
RAN = True
print("main runs")
import numpy as np
from sppo_megatron.config import RewardConfig
from sppo_megatron.rewards.registry import build_scorer
from sppo_megatron.types import Group, Prompt, Response
config = RewardConfig(kind="function", function="hostile_rewards:{function}", num_workers=1, timeout_s=1000.0)
group = Group(Prompt(0, np.array([1]), "p"), [Response(np.array([1]), "{text}")])
with build_scorer(config) as scorer:
    print(scorer.score([group])[0].responses[0].reward)
"""


def start_script(script, **pipes):
    environment = os.environ | {"PYTHONPATH": str(PACKAGE_ROOT)}
    command = [sys.executable, "-"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=environment, **pipes)
    process.stdin.write(script)
    process.stdin.close()
    return process


def test_workers_do_not_run_the_main_module_again(rewards_folder):
    """An unguarded script read from standard input: what plain spawning cannot do."""
    process = start_script(SCRIPT.format(function="main_module_is_empty", text="x"), stdout=subprocess.PIPE)
    assert process.stdout.read().split("\n") == ["main runs", "1.0", ""]
    assert process.wait() == 0


def test_a_hanging_worker_dies_with_its_killed_trainer(rewards_folder):
    process = start_script(SCRIPT.format(function="hostile", text="hang"), stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (rewards_folder / "hanging").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        busy = workers_of(process.pid)
        assert busy
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    _, alive = psutil.wait_procs(busy, timeout=20)
    assert not alive


def workers_of(pid):
    return [p for p in psutil.Process(pid).children() if "spawn_main" in " ".join(p.cmdline())]


def test_built_in_rewards_score_inline():
    group = make_group("1284", "12", " 1284 ", answer="1284")
    with build_scorer(RewardConfig(kind="character_share")) as scorer:
        [group] = scorer.score([group])
    assert not workers_of(os.getpid())
    assert [(r.reward, r.correct) for r in group.responses] == [(1.0, True), (0.5, False), (1.0, True)]
    assert [r.error for r in group.responses] == [None] * 3


RECORDER = """
import json

def everything(response, messages, token_ids, loss_mask, extra, source, finish_reason, group):
    said = {"messages": messages, "ids": token_ids.tolist(), "mask": loss_mask.tolist(), "extra": extra}
    said |= {"source": source, "finish": finish_reason, "group": group}
    raise ValueError(json.dumps(said))

def of_two(first, second, extra, token_ids, finish_reason):
    assert [len(ids) for ids in token_ids] == [len(first), len(second)], token_ids
    return extra[first] / (extra[first] + extra[second])
"""


def test_a_function_gets_what_it_asks_for(tmp_path, monkeypatch):
    (tmp_path / "recorder_rewards.py").write_text(RECORDER)
    monkeypatch.syspath_prepend(str(tmp_path))
    messages = [{"role": "user", "content": "hi"}]
    prompt = Prompt(0, np.array([5]), "hi", messages=messages, extra={"tests": [1, {"a": None}]}, source="math")
    masked = Response(np.array([1, 2]), "x", finish_reason="length", loss_mask=np.array([True, False]))
    with build_scorer(function_config("recorder_rewards:everything", num_workers=1)) as scorer:
        [group] = scorer.score([Group(prompt, [masked, Response(np.array([3]), "y")])])
    first, second = (json.loads(r.error.removeprefix("ValueError: ")) for r in group.responses)
    shared = {"messages": messages, "extra": {"tests": [1, {"a": None}]}, "source": "math", "group": ["x", "y"]}
    assert first == shared | {"ids": [1, 2], "mask": [True, False], "finish": "length"}
    assert second == shared | {"ids": [3], "mask": [True], "finish": "stop"}

    prompt = Prompt(0, np.array([5]), "hi", extra={"a": 3, "bb": 1})
    responses = [Response(np.arange(len(text)), text) for text in ("a", "bb")]
    scorer = build_scorer(RewardConfig(kind="pairwise_function", function="recorder_rewards:of_two"))
    [group] = scorer.score([Group(prompt, responses)])
    scorer.close()
    np.testing.assert_allclose(group.preference, [[0.5, 0.75], [0.25, 0.5]])


ORPHANS = """
import os, subprocess, sys, time

SPIN = "import os, time; open(f'pids/{os.getpid()}', 'w').close(); time.sleep(600)"

def score(prompt, response, answer):
    alone = response.endswith("alone")
    child = subprocess.Popen([sys.executable, "-c", SPIN], start_new_session=alone)
    while not os.path.exists(f"pids/{child.pid}"):
        time.sleep(0.01)
    if response.startswith("die"):
        os._exit(7)
    if response.startswith("forget"):
        return 1.0
    child.wait()
"""


@pytest.fixture
def orphans_folder(tmp_path, monkeypatch):
    (tmp_path / "orphan_rewards.py").write_text(ORPHANS)
    (tmp_path / "pids").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for pid in left_of(tmp_path):
        os.kill(pid, signal.SIGKILL)


def left_of(folder):
    pids = [int(path.name) for path in (folder / "pids").iterdir()]
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def test_what_a_reward_started_ends_with_its_worker(orphans_folder):
    """It timed out, also with a child in a session of its own; it died; it forgot a child until the pool was closed."""
    with build_scorer(function_config("orphan_rewards:score", num_workers=1, timeout_s=2.0)) as scorer:
        [group] = scorer.score([make_group("hang", "hang alone", "die", "die alone", "forget")])
        assert [response.error is None for response in group.responses] == [False, False, False, False, True]
        assert len(list((orphans_folder / "pids").iterdir())) == 5 and len(left_of(orphans_folder)) <= 1
    deadline = time.monotonic() + 10
    while left_of(orphans_folder):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("end", ["killed", "killed alone", "ended"])
def test_a_piped_run_returns_and_leaves_nothing(orphans_folder, end):
    """Whoever reads what it prints is not kept waiting by what a reward left behind."""
    script = SCRIPT.replace("hostile_rewards", "orphan_rewards").replace("1000.0", "2.0 if '{text}' == 'hang' else 1e3")
    text = {"killed": "hang for ever", "killed alone": "hang for ever alone", "ended": "hang"}[end]
    process = start_script(script.format(function="score", text=text), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if end != "ended":
        while not left_of(orphans_folder):
            time.sleep(0.05)
        process.kill()
    assert "main runs" in process.stdout.read()
    process.wait(timeout=60)
    deadline = time.monotonic() + 10
    while left_of(orphans_folder):
        assert time.monotonic() < deadline
        time.sleep(0.05)


SCRUBBED = """
import os, subprocess, sys

def score(prompt, response, answer):
    print("printed by the reward")
    script = "import os, time; open(f'pids/{os.getpid()}', 'w').close(); time.sleep(8)"
    subprocess.Popen([sys.executable, "-c", script], start_new_session=True, env={})
    os._exit(7)
"""


def test_what_nobody_could_find_keeps_no_reader_waiting(orphans_folder):
    """A child of a session of its own, without the environment it came from, whose parent is gone."""
    (orphans_folder / "orphan_rewards.py").write_text(SCRUBBED)
    script = SCRIPT.replace("hostile_rewards", "orphan_rewards").format(function="score", text="a")
    process = start_script(script, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert "printed by the reward" in process.stdout.read()
    assert process.wait(timeout=60) == 0 and left_of(orphans_folder), "it is still there"


def test_an_error_that_no_file_could_hold_costs_its_own_sample(tmp_path, monkeypatch):
    """A program printed bytes that aren't UTF-8."""
    text = (
        'def score(p, r, a):\n    raise AssertionError("printed " + b"caf\\xe9".decode("utf-8", "surrogateescape"))\n'
    )
    (tmp_path / "surrogate_rewards.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with build_scorer(function_config("surrogate_rewards:score", num_workers=1)) as scorer:
        groups = scorer.score([make_group("x", "smile \ud83d")])
    assert [response.error for response in groups[0].responses] == ["AssertionError: printed caf\\udce9"] * 2
    groups[0].responses[0].error.encode("utf-8")


def test_a_missing_answer_is_recorded_not_raised(caplog):
    groups = [make_group("7", answer=None), make_group("7", answer="7")]
    groups = build_scorer(RewardConfig(kind="numeric", default=-1.0)).score(groups)
    first, second = groups[0].responses[0], groups[1].responses[0]
    assert (first.reward, first.correct) == (-1.0, False)
    assert "answer_key" in first.error
    assert (second.reward, second.correct, second.error) == (1.0, True, None)
    assert "failed on 1 of 2" in caplog.text


def test_math_verify_in_workers():
    pytest.importorskip("math_verify")
    group = make_group(r"so $\frac{1}{2}$", "2", answer="0.5")
    with build_scorer(RewardConfig(kind="math_verify", num_workers=1, timeout_s=60.0)) as scorer:
        [group] = scorer.score([group])
    assert [(r.reward, r.correct, r.error) for r in group.responses] == [(1.0, True, None), (0.0, False, None)]


def test_an_old_error_is_forgotten_when_scored_again():
    group = make_group("7", answer="7")
    group = Group(group.prompt, [replace(group.responses[0], error="old")])
    [group] = build_scorer(RewardConfig(kind="exact_match")).score([group])
    assert group.responses[0].error is None


def test_text_is_decoded_where_it_is_missing():
    group = make_group(None, answer="1,2")
    with pytest.raises(ValueError, match="without text"):
        build_scorer(RewardConfig()).score([group])
    [group] = build_scorer(RewardConfig(), decode=lambda each: [",".join(map(str, ids)) for ids in each]).score([group])
    assert group.responses[0].reward == 1.0


def test_no_groups():
    assert build_scorer(RewardConfig()).score([]) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RewardConfig(kind="exact"), "choose one of exact_match, numeric, character_share, math_verify, function"),
        (RewardConfig(kind="function"), "reward.function=module:name"),
        (RewardConfig(kind="function", function="nowhere_at_all:f"), "cannot import"),
        (RewardConfig(function="m:f"), "reward.kind=function or"),
        (RewardConfig(num_workers=0), "num_workers"),
        (RewardConfig(timeout_s=0.0), "timeout_s"),
        (RewardConfig(default=float("nan")), "default"),
    ],
)
def test_a_wrong_setting_is_found_at_construction(config, message):
    with pytest.raises(ValueError, match=message):
        build_scorer(config)
