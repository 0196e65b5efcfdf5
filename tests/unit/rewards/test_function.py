"""A user's own function: found early, and its results understood or refused."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sppo_megatron.rewards.function import PAIR_ARGUMENTS, load_function, to_probability, to_score
from sppo_megatron.rewards.verifiers import Score


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """A current directory with a module in it, forgotten afterwards."""
    (tmp_path / "own_rewards.py").write_text(
        "def good(prompt, response, answer): return 1.0\n"
        "def two(one, other): return 1.0\n"
        "class Judge:\n    @staticmethod\n    def score(prompt, response, answer): return 2.0\n"
        "LIMIT = 3\n"
    )
    (tmp_path / "broken_rewards.py").write_text("import not_a_module_at_all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", os.getcwd())])
    yield tmp_path
    for name in ("own_rewards", "broken_rewards"):
        sys.modules.pop(name, None)


def test_found_in_the_current_directory(in_folder):
    assert load_function("own_rewards:good").function("p", "r", None) == 1.0
    assert load_function("own_rewards:Judge.score").function("p", "r", None) == 2.0


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("own_rewards", "module:name"),
        ("own_rewards.good", "module:name"),
        (":good", "module:name"),
        ("own_rewardz:good", "cannot import 'own_rewardz'.*PYTHONPATH"),
        ("broken_rewards:good", "not_a_module_at_all"),
        ("own_rewards:god", r"has no 'god'; it has \['Judge', 'good', 'two'\]"),
        ("own_rewards:LIMIT", "is a int, not a function"),
        ("own_rewards:two", r"called as f\(prompt, response, answer\)"),
    ],
)
def test_what_is_wrong_is_said_with_a_fix(in_folder, path, message):
    with pytest.raises(ValueError, match=message):
        load_function(path)


PROMPT = ("messages", "extra", "source", "group")
RESPONSE = ("token_ids", "loss_mask", "finish_reason")


@pytest.mark.parametrize(
    ("signature", "num_positional", "names"),
    [
        ("prompt, response, answer", 0, ("prompt", "response", "answer")),
        ("answer, response", 0, ("answer", "response")),
        ("extra, response, *, source=None", 0, ("extra", "response", "source")),
        ("response, weight=1.0", 0, ("response",)),
        ("p, r, a", 3, ()),
        ("p, r, a=None", 3, ()),
        ("p, r, a, extra=None", 3, ("extra",)),
        ("p, r, a, *, token_ids", 3, ("token_ids",)),
        ("p, r, a, /", 3, ()),
        ("*texts", 3, ()),
        ("response, **rest", 0, ("prompt", "response", "answer", *PROMPT, *RESPONSE)),
        ("prompt, text, answer", 3, ()),
    ],
)
def test_a_function_is_given_what_its_signature_asks_for(in_folder, signature, num_positional, names):
    (in_folder / "own_rewards.py").write_text(f"def f({signature}): return 1.0")
    function = load_function("own_rewards:f")
    assert (function.num_positional, function.names) == (num_positional, names)
    assert function(["text"] * num_positional, dict.fromkeys(names)) == 1.0


def test_what_it_asks_for_may_not_be_there(in_folder):
    (in_folder / "own_rewards.py").write_text("def f(response, tests): return 1.0")
    with pytest.raises(ValueError, match=r"called as f\(prompt, response, answer\).*by name.*messages, extra, source"):
        load_function("own_rewards:f")


def test_arguments_of_a_pair(in_folder):
    with pytest.raises(ValueError, match=r"called as f\(prompt, first, second, answer\)"):
        load_function("own_rewards:good", PAIR_ARGUMENTS)


def test_a_console_script_finds_it_too(in_folder):
    """sys.path of a console script doesn't hold the current directory; `python -P` leaves it out likewise."""
    code = (
        "from sppo_megatron.rewards.function import load_function\n"
        "print(load_function('own_rewards:good').function(1, 2, 3))"
    )
    root = os.path.dirname(os.path.dirname(sys.modules["sppo_megatron"].__file__))
    result = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": root}
    )
    assert result.stdout.strip() == "1.0", result.stderr


@pytest.mark.parametrize(
    ("result", "score"),
    [
        (0.5, Score(0.5, None)),
        (2, Score(2.0, None)),
        (True, Score(1.0, True)),
        (np.bool_(False), Score(0.0, False)),
        (np.float32(0.25), Score(0.25, None)),
        (torch.tensor(0.25), Score(0.25, None)),
        ((0.5, True), Score(0.5, True)),
        ((0.5, None), Score(0.5, None)),
        ((0.5, np.bool_(True)), Score(0.5, True)),
        (SimpleNamespace(reward=0.5, correct=False), Score(0.5, False)),
        (SimpleNamespace(reward=0.5), Score(0.5, None)),
    ],
)
def test_results_understood(result, score):
    assert to_score(result) == score


@pytest.mark.parametrize(
    "result",
    [None, float("nan"), float("inf"), "1.0", b"1", [1.0], {}, (1.0,), (1.0, True, 3), (1.0, "yes"), (None, True),
     torch.ones(2), np.ones(2), object(), 10**400, SimpleNamespace(reward=None)],
)  # fmt: skip
def test_results_refused(result):
    with pytest.raises(ValueError, match="the reward function returned"):
        to_score(result)


@pytest.mark.parametrize(
    ("result", "probability"), [(0, 0.0), (1.0, 1.0), (0.25, 0.25), (True, 1.0), (np.float32(0.5), 0.5)]
)
def test_probabilities_understood(result, probability):
    assert to_probability(result) == probability


@pytest.mark.parametrize("result", [-0.01, 1.01, float("nan"), None, "0.5", (0.5, True)])
def test_probabilities_refused(result):
    with pytest.raises(ValueError, match="the reward function returned"):
        to_probability(result)
