"""Overrides as people type them: text is taken as it stands, and what can't be read is refused with a way out.

SPPO_FUZZ_EXAMPLES: how many each of the two random tests makes; `make fuzz` takes many.
"""

from __future__ import annotations

import os

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from sppo_megatron.config import all_keys
from sppo_megatron.config.compose import compose_config
from sppo_megatron.config.overrides import quote_text
from sppo_megatron.errors import ConfigError

MODEL = "model.hf_path=somewhere"
EXAMPLES = int(os.environ.get("SPPO_FUZZ_EXAMPLES", "40"))
IN_CI = "SPPO_FUZZ_EXAMPLES" not in os.environ  # the same texts every time
TEXT_KEYS = [name for name, key in all_keys().items() if key.is_text]
# What an argument of a process can hold, without what keeps a meaning: quotes around it all, and interpolations.
ARGUMENTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
TEXTS = ARGUMENTS.filter(lambda text: text.strip()[:1] not in ("'", '"') and text not in ("null", "???"))


def value_of(key: str, text: str):
    config = compose_config([MODEL, f"{key}={text}"])[0]
    for name in key.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize("key", ["output_dir", "data.train_path", "rollout.path"])
@pytest.mark.parametrize(
    "text",
    [
        "run/lr=1e-6",
        "run/größe/t.jsonl",
        "run/p(1).jsonl",
        "run/a,b.jsonl",
        "run/x#1",
        "1e5",
        "007",
        "true",
        "a b",
        " a ",
        "[a]",
        "{a: b}",
        "it's",
        'say "x"',
        "C:\\run\\",
        "\\'",
        "a\nb",
        "模型",
        "a@b:c%d&e;f|g<h>i*j?k!l$m^n`o+p-q",
        "",
    ],
)
def test_text_is_taken_as_it_stands(key, text):
    assert value_of(key, text) == text


@given(TEXTS)
@settings(max_examples=5 * EXAMPLES, deadline=None, derandomize=IN_CI)
def test_any_text_is_taken_as_it_stands(text):
    read = OverridesParser.create().parse_override(quote_text(f"output_dir={text}")).value()
    assert read == text and isinstance(read, str)


def test_what_keeps_its_meaning(monkeypatch):
    monkeypatch.setenv("RUNS", "/runs")
    assert value_of("output_dir", "${oc.env:RUNS}/lr=1") == "/runs/lr=1"
    assert value_of("data.train_path", "null") is None
    assert value_of("output_dir", "'null'") == "null"
    assert value_of("output_dir", '"run/lr=1"') == "run/lr=1"
    assert value_of("output_dir", "'a' and 'b'") == "'a' and 'b'"


def test_signs_of_hydra_stay():
    assert compose_config([f"++{MODEL}", "++output_dir=a=b"])[0].output_dir == "a=b"
    assert quote_text("~output_dir") == "~output_dir"


@pytest.mark.parametrize("key", TEXT_KEYS)
def test_every_key_of_text(key):
    assert value_of(key, "a=b, c") == "a=b, c"


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("[http://[::1]:8200]", ["http://[::1]:8200"]),
        ("[http://a:1, http://b:2]", ["http://a:1", "http://b:2"]),
        ("['http://a:1','b']", ["http://a:1", "b"]),
        ("[]", []),
    ],
)
def test_lists_of_texts(text, urls):
    assert value_of("reward.judge.urls", text) == urls


def test_a_mapping_takes_any_name():
    config = compose_config([MODEL, "reward.judge.request={seed: 1}", "rollout.vllm.engine_args.max_num_seqs=2"])[0]
    assert config.reward.judge.request == {"seed": 1}
    assert config.rollout.vllm.engine_args == {"max_num_seqs": 2}


def test_what_cannot_be_read_says_how_to_quote():
    with pytest.raises(ConfigError) as raised:
        compose_config([MODEL, "reward.judge.request={a: (}"])
    assert """'reward.judge.request="{a: (}"'""" in str(raised.value)


def test_every_unknown_key_at_once():
    with pytest.raises(ConfigError) as raised:
        compose_config([MODEL, "optimzer.lr=1", "+nonsense=2", "train.iteration=3", "hydra.verbose=true"])
    assert [line.partition(" ")[0] for line in str(raised.value).splitlines()] == [
        "optimzer.lr",
        "nonsense",
        "train.iteration",
    ]


NAMES = st.sampled_from([*all_keys(), "model", "objective", "experiment", "precision", "reward.judge", "nothing", ""])
VALUES = st.one_of(
    ARGUMENTS,
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["null", "true", "[1, a]", "{a: 1}", "sppo", "???", "${model}", "${nowhere}", "1,2", "bf16"]),
)
OVERRIDES = st.builds("{}{}={}".format, st.sampled_from(["", "", "", "+", "++", "~"]), NAMES, VALUES)


@given(st.lists(st.one_of(OVERRIDES, ARGUMENTS), max_size=3))
@example(["objective=0"])
@example(["+=${nowhere}"])
# Without shrinking, which takes minutes.
@settings(max_examples=EXAMPLES, deadline=None, derandomize=IN_CI, phases=[Phase.explicit, Phase.generate])
def test_whatever_is_typed_is_a_configuration_or_a_message(overrides):
    try:
        compose_config([MODEL, *overrides])
    except ConfigError as error:
        assert str(error).strip()
