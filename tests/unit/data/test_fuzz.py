"""Files of strangers: whatever stands in them, they are read or refused by name, and what was read can be written.

SPPO_FUZZ_EXAMPLES: how many files each test makes; `make fuzz` takes many.
"""

from __future__ import annotations

import json
import os

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sppo_megatron.config import DataConfig
from sppo_megatron.data.prompts import load_prompts
from sppo_megatron.data.rollout_file import group_line, iterate_groups, read_groups, summarize, write_groups
from sppo_megatron.errors import ConfigError
from tests.unit.data.test_conversation import CONCATENATES, JOINS_PARTS, KNOWS_TOOLS, PRINTS
from tests.unit.data.test_prompts import make_tokenizer

many = settings(
    max_examples=int(os.environ.get("SPPO_FUZZ_EXAMPLES", "60")),
    deadline=None,
    derandomize="SPPO_FUZZ_EXAMPLES" not in os.environ,  # in CI the same files every time
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)

text = st.text(st.characters(), max_size=6)
number = st.integers() | st.floats() | st.sampled_from([2**31, -1, 10**400, 1e39, 0, 1, True])
anything = st.recursive(
    st.none() | st.booleans() | number | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
numbers = st.lists(number, max_size=3)
ids = st.lists(st.integers(0, 9), min_size=1, max_size=3)


def mapping(**fields):
    """Any of the fields, each of its own kind or of any."""
    return st.fixed_dictionaries({}, optional={name: kind | anything for name, kind in fields.items()})


responses = mapping(
    token_ids=ids, loss_mask=numbers, text=text, rollout_log_probs=numbers, old_log_probs=numbers, finish_reason=text,
    reward=number, policy_version=number, correct=st.booleans(), error=text,
)  # fmt: skip
message = mapping(
    role=st.sampled_from(["user", "system", "assistant", "tool"]) | text,
    content=text | st.lists(mapping(type=st.just("text"), text=text), max_size=2),
    tool_calls=st.lists(mapping(function=mapping(name=text)), max_size=2),
)
good_groups = st.builds(
    lambda prompt, others, columns: {"prompt_token_ids": prompt, "responses": others, **columns},
    ids,
    st.lists(ids.map(lambda tokens: {"token_ids": tokens, "loss_mask": [1] * len(tokens)}), max_size=3),
    mapping(extra=st.dictionaries(text, anything, max_size=3), source=text, prompt=text, messages=st.lists(message)),
)
groups = mapping(
    prompt_token_ids=ids, prompt=text, answer=text, prompt_index=number, human_token_ids=ids, source=text,
    messages=st.lists(message), extra=anything, responses=st.lists(responses | anything, max_size=3),
    preference=st.lists(numbers),
)  # fmt: skip
records = mapping(prompt=text | st.lists(message, max_size=3), answer=text | number, check=mapping(truth=text))


@st.composite
def files(draw, lines):
    """Lines of JSON, then torn, and bytes put anywhere."""
    encoded = [json.dumps(line, ensure_ascii=draw(st.booleans())) for line in draw(st.lists(lines, max_size=3))]
    separator = draw(st.sampled_from(["\n", "\r\n", "\n\n"]))
    content = separator.join(encoded).encode("utf-8", errors="surrogatepass")
    for at, put in draw(st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=4)), max_size=2)):
        content = content[:at] + put + content[at:]
    return draw(st.sampled_from([b"", b"\xef\xbb\xbf", b"[", b"\xff\xfe"])) + content[: draw(st.integers(0, 10_000))]


@many
@given(content=files(groups | good_groups | anything))
def test_rollout_files(content, tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    try:
        found = read_groups(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}, line "), error
        return
    assert summarize(path).responses == [len(group.responses) for group in found]
    write_groups(path, found)
    lines = path.read_bytes()
    assert b"".join(map(group_line, iterate_groups(path))) == lines


@many
@given(
    content=files(records | anything),
    template=st.sampled_from([None, CONCATENATES, PRINTS, KNOWS_TOOLS, JOINS_PARTS]),
    answer_key=st.sampled_from(["answer", "check.truth"]),
    suffix=st.sampled_from([".jsonl", ".json", ""]),
)
def test_prompts(content, template, answer_key, suffix, tmp_path):
    path = tmp_path / f"prompts{suffix}"
    path.write_bytes(content)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    config = DataConfig(answer_key=answer_key, apply_chat_template=template is not None)
    try:
        prompts = load_prompts(path, tokenizer, config)
    except ConfigError as error:
        assert str(path) in str(error)
        return
    for prompt in prompts:
        assert prompt.token_ids.size and prompt.text is not None
        json.dumps([prompt.answer, prompt.messages, dict(prompt.extra)], allow_nan=False)
