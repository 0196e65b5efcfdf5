"""Scoring with real worker processes, and reward functions that raise, hang, die and lie."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from sppo_megatron.config import RewardConfig
from sppo_megatron.rewards.scorer import RewardScorer
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
    with RewardScorer(config) as scorer, caplog.at_level(logging.WARNING):
        assert scorer.score(groups) is groups
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
    with RewardScorer(function_config("hostile_rewards:hostile", num_workers=2)) as scorer:
        (group,) = scorer.score([make_group(*texts)])
    for response in group.responses:
        assert (response.error is None) == (response.text != "die"), response
        assert response.reward == (0.0 if response.text == "die" else float(response.text))


def test_a_pool_whose_workers_were_killed_between_calls_is_replaced(rewards_folder):
    """As the system does when memory runs out: no response is to blame, and none may pay."""
    with RewardScorer(function_config("hostile_rewards:hostile", num_workers=1)) as scorer:
        scorer.score([make_group("1")])
        for process in workers_of(os.getpid()):
            process.kill()
        time.sleep(0.5)  # until the pool has seen it
        (group,) = scorer.score([make_group("2", "3", "die", "4")])
    assert [response.reward for response in group.responses] == [2.0, 3.0, 0.0, 4.0]


def test_workers_start_once_and_end_with_close(rewards_folder):
    scorer = RewardScorer(function_config("hostile_rewards:process_id", num_workers=2))
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
        RewardScorer(function_config("picky_rewards:only_in_the_trainer", num_workers=1)) as scorer,
        pytest.raises(RuntimeError, match="picky_rewards:only_in_the_trainer' don't start"),
    ):
        scorer.score([make_group("a")])


SCRIPT = """
RAN = True
print("main runs")
import numpy as np
from sppo_megatron.config import RewardConfig
from sppo_megatron.rewards.scorer import RewardScorer
from sppo_megatron.types import Group, Prompt, Response
config = RewardConfig(kind="function", function="hostile_rewards:{function}", num_workers=1, timeout_s=1000.0)
group = Group(Prompt(0, np.array([1]), "p"), [Response(np.array([1]), "{text}")])
with RewardScorer(config) as scorer:
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
    with RewardScorer(RewardConfig(kind="character_share")) as scorer:
        scorer.score([group])
    assert not workers_of(os.getpid())
    assert [(r.reward, r.correct) for r in group.responses] == [(1.0, True), (0.5, False), (1.0, True)]
    assert [r.error for r in group.responses] == [None] * 3


def test_a_missing_answer_is_recorded_not_raised(caplog):
    groups = [make_group("7", answer=None), make_group("7", answer="7")]
    RewardScorer(RewardConfig(kind="numeric", default=-1.0)).score(groups)
    first, second = groups[0].responses[0], groups[1].responses[0]
    assert (first.reward, first.correct) == (-1.0, False)
    assert "answer_key" in first.error
    assert (second.reward, second.correct, second.error) == (1.0, True, None)
    assert "failed on 1 of 2" in caplog.text


def test_math_verify_in_workers():
    pytest.importorskip("math_verify")
    group = make_group(r"so $\frac{1}{2}$", "2", answer="0.5")
    with RewardScorer(RewardConfig(kind="math_verify", num_workers=1, timeout_s=60.0)) as scorer:
        scorer.score([group])
    assert [(r.reward, r.correct, r.error) for r in group.responses] == [(1.0, True, None), (0.0, False, None)]


def test_an_old_error_is_forgotten_when_scored_again():
    group = make_group("7", answer="7")
    group.responses[0].error = "old"
    RewardScorer(RewardConfig(kind="exact_match")).score([group])
    assert group.responses[0].error is None


def test_text_is_decoded_where_it_is_missing():
    group = make_group(None, answer="1,2")
    with pytest.raises(ValueError, match="without text"):
        RewardScorer(RewardConfig()).score([group])
    RewardScorer(RewardConfig(), decode=lambda ids: ",".join(map(str, ids))).score([group])
    assert group.responses[0].reward == 1.0


def test_no_groups():
    assert RewardScorer(RewardConfig()).score([]) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RewardConfig(kind="exact"), "choose one of exact_match, numeric, character_share, math_verify, function"),
        (RewardConfig(kind="function"), 'reward.function="module:name"'),
        (RewardConfig(kind="function", function="nowhere_at_all:f"), "cannot import"),
        (RewardConfig(function="m:f"), "set reward.kind=function"),
        (RewardConfig(num_workers=0), "num_workers"),
        (RewardConfig(timeout_s=0.0), "timeout_s"),
        (RewardConfig(default=float("nan")), "default"),
    ],
)
def test_a_wrong_setting_is_found_at_construction(config, message):
    with pytest.raises(ValueError, match=message):
        RewardScorer(config)
