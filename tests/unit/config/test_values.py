"""Every key by itself: what its annotation allows is taken, and everything else is refused by name, in one line."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Annotated, Any, Literal

import pytest

from sppo_megatron.config import Config, Resume, all_keys
from sppo_megatron.config.keys import AtLeastOne, Finite, alternatives, choices, described
from sppo_megatron.config.values import check_values, to_config
from sppo_megatron.errors import ConfigError

KEYS = all_keys()
NUMBERS = [name for name, key in KEYS.items() if {int, float} & {kind for kind, _ in alternatives(key.hint)}]
CHOICES = [name for name, key in KEYS.items() if choices(key.hint) is not None]


def values_with(name: str, value: Any) -> dict[str, Any]:
    config = asdict(Config())
    *groups, last = name.split(".")
    group = config
    for each in groups:
        group = group[each]
    assert last in group
    group[last] = value
    return config


def refusal(name: str, value: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        to_config(values_with(name, value))
    (line,) = str(raised.value).splitlines()
    return line


def test_the_defaults_are_valid():
    assert to_config(asdict(Config())) == Config()
    assert not list(check_values(Config()))


@pytest.mark.parametrize("name", KEYS)
def test_what_no_value_can_be(name):
    """A set of strangers: each key takes some of them, and says of each other what it is."""
    for value in ({"a"}, "nonsense", [], {}, None, True, -7, 0.5):
        try:
            to_config(values_with(name, value))
        except ConfigError as error:
            (line,) = str(error).splitlines()
            assert line.startswith((f"{name}=", f"{name}[0]="))
            assert " must be " in line or "choose one of" in line
    assert refusal(name, object())


@pytest.mark.parametrize("name", CHOICES)
def test_choices(name):
    named = choices(KEYS[name].hint)
    assert named and KEYS[name].default in named
    for value in named:
        to_config(values_with(name, value))
    if bool not in map(type, named):
        spelled = ", ".join("null" if choice is None else str(choice) for choice in named)
        assert refusal(name, "qqq") == f"{name}='qqq' is not known: choose one of {spelled}"


def test_a_choice_that_was_nearly_right():
    assert refusal("precision.dtype", "fp31").endswith("; did you mean fp32?")


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_a_range(name):
    assert refusal(name, math.nan).startswith(f"{name}=nan must be ")
    assert any(metadata for _, metadata in alternatives(KEYS[name].hint))
    assert refusal(name, True).startswith(f"{name}=true must be ")
    assert refusal(name, "many").startswith(f"{name}='many' must be ")


@pytest.mark.parametrize(
    ("name", "good", "bad", "said"),
    [
        ("train.iterations", [1, "3", 1e3], [0, -1, 1.5], "at least 1"),
        ("data.max_prompt_length", [1, None], [0], "at least 1"),
        ("optimizer.lr", [1e-9, 1], [0.0, -1.0, None], "above 0"),
        ("objective.target_clip", [0.1, None], [0.0], "above 0"),
        ("eval.temperature", [0, 0.0], [-0.1], "at least 0"),
        ("optimizer.adam_beta2", [0.0, 0.999], [1.0, -0.1], "in [0, 1)"),
        ("rollout.top_p", [0.1, 1.0], [0.0, 1.1], "in (0, 1]"),
        ("rollout.top_k", [-1, 1, 40], [0, -2], "-1 or at least 1"),
        ("reward.default", [-5.0, 0], [math.inf, -math.inf], ""),
        ("rollout.mismatch.sequence_bound", [math.inf], [0.0], "above 0"),
    ],
)
def test_ranges(name, good, bad, said):
    for value in good:
        to_config(values_with(name, value))
    for value in bad:
        if isinstance(value, (int, float)) and not (isinstance(value, float) and "whole" in described(KEYS[name].hint)):
            assert refusal(name, value).startswith(f"{name}={value} must be {said}")
        else:
            assert said in refusal(name, value)


@pytest.mark.parametrize("value", ["auto", "off", "true", 1, 0, None])
def test_booleans_are_booleans(value):
    shown = repr(value) if isinstance(value, str) else "null" if value is None else value
    for name in ("train.fused_loss", "rollout.ahead"):
        assert refusal(name, value) == f"{name}={shown} must be true or false"


def test_a_group_is_no_value():
    assert refusal("model", 3) == "model=3 must be a group of keys"


def test_all_wrong_values_at_once():
    config = Config()
    config.optimizer.lr, config.train.iterations, config.precision.dtype = 0.0, "x", "fp31"
    assert {problem.partition("=")[0] for problem in check_values(config)} == {
        "optimizer.lr",
        "train.iterations",
        "precision.dtype",
    }


def test_a_home_folder_is_found(monkeypatch):
    monkeypatch.setenv("HOME", "/home/her")
    values = values_with("model.hf_path", "~/model")
    values["data"]["prompt_key"] = "~prompt"
    config = to_config(values)
    assert (config.model.hf_path, config.data.prompt_key) == ("/home/her/model", "~prompt")


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "a whole number"),
        (AtLeastOne[int] | None, "a whole number of at least 1 or null"),
        (Literal[-1] | AtLeastOne[int], "-1 or a whole number of at least 1"),
        (Finite[float], "a number that is finite"),
        (Literal["a", "b"] | None, "one of a, b, null"),
        (Annotated[bool, Resume.FREE], "true or false"),
        (list[str], "a list [a, b]"),
        (dict[str, Any], "a mapping {key: value}"),
    ],
    ids=str,
)
def test_words(hint, words):
    assert described(hint) == words


@pytest.mark.parametrize("name", KEYS)
def test_every_key_says_what_a_change_does_to_a_run_that_continues(name):
    assert isinstance(KEYS[name].resume, Resume)
