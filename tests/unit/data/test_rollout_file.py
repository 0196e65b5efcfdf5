"""The rollout file: everything comes back, and everything broken is named."""

import json
from dataclasses import replace
from datetime import date

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo_megatron.data.rollout_file import read_groups, summarize, write_groups
from sppo_megatron.types import Group, Prompt, Response

LINE = {
    "prompt_token_ids": [1, 2],
    "responses": [
        {"token_ids": [3, 4], "rollout_log_probs": [-0.5, -0.25], "reward": 1},
        {"token_ids": [], "text": ""},
    ],
}

ids = st.integers(0, 2**31 - 1)
float32s = st.floats(width=32, allow_nan=False, allow_infinity=False)
anything = st.text(st.characters())  # half of a surrogate pair, too: what a sandbox printed, for instance
texts = st.none() | anything
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | anything,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(anything, inner, max_size=3),
    max_leaves=8,
)
columns = st.dictionaries(anything, plain, max_size=3)
conversations = st.lists(columns.map(lambda others: {**others, "role": "user", "content": "Hi"}), max_size=2)


@st.composite
def responses(draw):
    token_ids = draw(st.lists(ids, max_size=5))
    log_probs = draw(st.none() | st.lists(float32s, min_size=len(token_ids), max_size=len(token_ids)))
    mask = draw(st.none() | st.lists(st.booleans(), min_size=len(token_ids), max_size=len(token_ids)))
    if mask is not None and log_probs is not None:
        log_probs = [value if counts else 0.0 for value, counts in zip(log_probs, mask, strict=True)]
    return Response(
        token_ids=np.array(token_ids, dtype=np.int32),
        text=draw(texts),
        rollout_log_probs=None if log_probs is None else np.array(log_probs, dtype=np.float32),
        finish_reason=draw(st.sampled_from(["stop", "length"])),
        reward=draw(st.none() | st.floats(allow_nan=False, allow_infinity=False)),
        correct=draw(st.none() | st.booleans()),
        error=draw(texts),
        loss_mask=None if mask is None else np.array(mask, dtype=bool),
    )


@st.composite
def group_lists(draw):
    groups = []
    for _ in range(draw(st.integers(0, 3))):
        token_ids = np.array(draw(st.lists(ids, min_size=1, max_size=4)), dtype=np.int32)
        prompt = Prompt(
            draw(st.integers(0, 10**9)),
            token_ids,
            draw(texts),
            draw(texts),
            messages=draw(st.none() | conversations),
            extra=draw(columns),
            source=draw(texts),
        )
        members = draw(st.lists(responses(), max_size=3))
        k = len(members)
        cells = draw(st.none() | st.lists(st.floats(0, 1), min_size=k * k, max_size=k * k))
        groups.append(Group(prompt, members, None if cells is None else np.array(cells).reshape(k, k)))
    return groups


def assert_same_array(a, b, dtype):
    assert (a is None) == (b is None)
    if a is not None:
        assert b.dtype == dtype
        assert a.shape == b.shape
        assert a.astype(dtype).tobytes() == b.tobytes()


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@settings(deadline=None, max_examples=200)
@given(groups=group_lists())
def test_everything_comes_back_bitwise(ending, groups, tmp_path_factory):
    path = tmp_path_factory.mktemp("rollouts") / f"iteration_000000.{ending}"
    write_groups(path, groups)
    back = read_groups(path)
    assert len(back) == len(groups)
    summary = summarize(path)
    assert summary.responses == [len(group.responses) for group in groups]
    tokens = [[group.prompt.token_ids, *(r.token_ids for r in group.responses)] for group in groups]
    assert summary.largest_id == max((int(i) for group in tokens for ids in group for i in ids), default=-1)
    assert summary.longest == max((len(p) + max(map(len, rest), default=0) for p, *rest in tokens), default=0)
    for group, again in zip(groups, back, strict=True):
        assert_same_array(group.prompt.token_ids, again.prompt.token_ids, np.int32)
        for name in ("index", "text", "answer", "messages", "extra", "source"):
            assert getattr(group.prompt, name) == getattr(again.prompt, name)
        assert_same_array(group.preference, again.preference, np.float64)
        for response, twin in zip(group.responses, again.responses, strict=True):
            assert_same_array(response.token_ids, twin.token_ids, np.int32)
            assert_same_array(response.loss_mask, twin.loss_mask, np.bool_)
            assert_same_array(response.rollout_log_probs, twin.rollout_log_probs, np.float32)
            for name in ("text", "finish_reason", "reward", "correct", "error"):
                assert getattr(response, name) == getattr(twin, name)


def write_lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_the_documented_line_and_its_defaults(tmp_path):
    stranger = LINE | {"unknown": 1, "answer": 7, "prompt": None}
    path = write_lines(tmp_path / "r.jsonl", LINE, stranger, LINE | {"prompt_index": 40})
    path.write_text(path.read_text().replace("\n", "\n\n"))  # blank lines don't count
    first, second, third = read_groups(path)
    assert [group.prompt.index for group in (first, second, third)] == [0, 1, 40]
    assert (first.prompt.text, first.prompt.answer, second.prompt.answer) == (None, None, "7")
    response, empty = first.responses
    assert response.token_ids.tolist() == [3, 4]
    assert response.rollout_log_probs.tolist() == [-0.5, -0.25]
    assert (response.text, response.finish_reason, response.reward) == (None, "stop", 1.0)
    assert (response.correct, response.error) == (None, None)
    assert empty.token_ids.shape == (0,)
    assert empty.rollout_log_probs is None
    assert first.preference is None and response.loss_mask is None and response.length == 2
    assert (first.prompt.messages, first.prompt.extra, first.prompt.source) == (None, {}, None)


def test_tokens_that_do_not_count(tmp_path):
    """What tools wrote has no log-prob: whatever stands there is read as 0."""
    masked = changed(loss_mask=[0, 1], old_log_probs=[-7, -0.5])
    [group] = read_groups(write_lines(tmp_path / "r.jsonl", masked))
    response = group.responses[1]
    assert response.loss_mask.tolist() == [False, True] and response.length == 1
    assert response.rollout_log_probs.tolist() == [0.0, -0.25] and response.old_log_probs.tolist() == [0.0, -0.5]
    write_groups(tmp_path / "again.jsonl", [group])
    assert '"loss_mask":[0,1]' in (tmp_path / "again.jsonl").read_text()


def test_what_json_has_not_becomes_what_it_has(tmp_path):
    """NaN is what tables have for nothing; a group that was read can always be written."""
    path = write_lines(tmp_path / "r.jsonl", LINE | {"extra": {"a": float("nan"), "b": [float("inf"), 1.5]}})
    groups = read_groups(path)
    assert groups[0].prompt.extra == {"a": None, "b": [None, 1.5]}
    write_groups(path, groups)
    odd = replace(groups[0].prompt, extra={"day": date(2026, 11, 28), "count": np.int64(3), "cells": np.eye(2)})
    write_groups(path, [Group(odd, [])])
    assert read_groups(path)[0].prompt.extra == {"day": "2026-11-28", "count": 3, "cells": [[1.0, 0.0], [0.0, 1.0]]}
    with pytest.raises(ValueError, match="group 1: a bytes is no JSON value"):
        write_groups(path, [Group(replace(odd, extra={"image": b"png"}), [])])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt_token_ids": [1], "responses": [], "prompt": "caf\xe9"}', "byte 0xe9 at column 58 is not UTF-8"),
        (b'{"prompt_token_ids": [1], "responses": [], "responses": []}', "the key 'responses' stands twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"extra": ' + b'{"a": ' * 600 + b"1" + b"}" * 601, "nested too deeply|prompt_token_ids"),
        (b"9" * 5000, "an integer has more digits than Python reads"),
    ],
)
def test_lines_that_are_no_json_of_ours(tmp_path, line, message):
    path = tmp_path / "r.jsonl"
    path.write_bytes(json.dumps(LINE).encode() + b"\n" + line + b"\n")
    with pytest.raises(ValueError, match=f"r.jsonl, line 2: .*({message})"):
        read_groups(path)


def test_a_slice_parses_its_own_lines_only(tmp_path):
    path = write_lines(tmp_path / "r.jsonl", *[LINE | {"prompt_index": i} for i in range(5)])
    with open(path, "a") as file:
        file.write("broken\n")
    assert [group.prompt.index for group in read_groups(path, 1, 3)] == [1, 2]
    with pytest.raises(ValueError, match="line 6: not JSON"):
        read_groups(path, 4)


def changed(**fields):
    """LINE with fields of its first response replaced."""
    return LINE | {"responses": [LINE["responses"][1], LINE["responses"][0] | fields]}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "is a JSON list"),
        ({"responses": []}, "prompt_token_ids is missing"),
        (LINE | {"prompt_token_ids": []}, "prompt_token_ids is empty"),
        (LINE | {"prompt_token_ids": [1, -1]}, r"prompt_token_ids\[1\] must be an integer in \[0, 2\^31\), got -1"),
        ({"prompt_token_ids": [1]}, "responses is missing"),
        (LINE | {"responses": [[]]}, "response 1: is a JSON list"),
        (LINE | {"responses": [{}]}, "response 1: token_ids is missing"),
        (changed(token_ids=[1, 2.0]), r"response 2: token_ids\[1\] must be an integer .* got 2.0"),
        (changed(token_ids=[1, True]), r"response 2: token_ids\[1\] must be an integer"),
        (changed(token_ids=[1, "2"]), r"response 2: token_ids\[1\] must be an integer"),
        (changed(token_ids=[2**31, 1]), r"response 2: token_ids\[0\] must be an integer"),
        (changed(rollout_log_probs=[-1.0]), "response 2: rollout_log_probs has 1 values for 2 token_ids"),
        (changed(rollout_log_probs=[-1.0, float("nan")]), r"response 2: rollout_log_probs\[1\] is not finite: nan"),
        (changed(rollout_log_probs=[-float("inf"), 0.0]), r"response 2: rollout_log_probs\[0\] is not finite"),
        (changed(rollout_log_probs=[-1e39, 0.0]), r"response 2: rollout_log_probs\[0\] is not finite"),
        (changed(rollout_log_probs=[-1.0, None]), "response 2: rollout_log_probs must be a list of numbers"),
        (changed(rollout_log_probs=[-(10**400), 0]), r"response 2: rollout_log_probs\[0\] is not finite"),
        (changed(loss_mask=[1]), "response 2: loss_mask has 1 values for 2 token_ids"),
        (changed(loss_mask=[1, 2]), "response 2: loss_mask must be a list of 0 and 1"),
        (changed(loss_mask=[1, True]), "response 2: loss_mask must be a list of 0 and 1"),
        (changed(loss_mask=[0.0, 1]), "response 2: loss_mask must be a list of 0 and 1"),
        (changed(loss_mask="10"), "response 2: loss_mask must be a list of 0 and 1"),
        (changed(reward=10**400), "response 2: reward must be a finite number"),
        (changed(reward=float("nan")), "response 2: reward must be a finite number"),
        (changed(reward="1"), "response 2: reward must be a finite number"),
        (changed(correct=1), "response 2: correct must be a JSON bool"),
        (changed(text=3), "response 2: text must be a JSON str"),
        (LINE | {"preference": [[0.5, 0.5]]}, "preference must be a 2×2 matrix"),
        (LINE | {"preference": [[0.5], [0.5]]}, "preference must be a 2×2 matrix"),
        (LINE | {"preference": [[0.5, 0.5], [0.5, None]]}, "preference must be a 2×2 matrix"),
        (LINE | {"preference": [[0.5, 0.5], [0.5, float("nan")]]}, "preference must be a 2×2 matrix"),
        (LINE | {"messages": {"role": "user"}}, "messages must be a JSON list"),
        (LINE | {"messages": [{"role": "user"}, {"content": ""}]}, "messages: message 2 is not an object with a"),
        (LINE | {"extra": [1]}, "extra must be a JSON dict"),
        (LINE | {"source": 1}, "source must be a JSON str"),
        (LINE | {"preference": 0.5}, "preference must be a 2×2 matrix"),
    ],
)
def test_what_is_broken_is_named(tmp_path, record, message):
    path = write_lines(tmp_path / "r.jsonl", LINE, record)
    with pytest.raises(ValueError, match=f"r.jsonl, line 2: {message}"):
        read_groups(path)
    with pytest.raises(ValueError, match=f"r.jsonl, line 2: {message}"):
        summarize(path)


def test_a_file_torn_anywhere_in_its_last_line(tmp_path):
    whole = json.dumps(LINE) + "\n"
    path = tmp_path / "r.jsonl"
    for length in range(1, len(whole) - 1):
        path.write_text(whole + whole[:length])
        with pytest.raises(ValueError, match=r"r.jsonl, line 2: not JSON .*probably cut off"):
            read_groups(path)


def make_group(log_prob):
    response = Response(np.array([1], dtype=np.int32), rollout_log_probs=np.array([log_prob], dtype=np.float32))
    return Group(Prompt(0, np.array([1], dtype=np.int32)), [response])


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, bad):
    path = tmp_path / "deep" / "r.jsonl"
    write_groups(path, [make_group(-1.0)])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"cannot write .*r.jsonl: group 2: response 1: rollout_log_probs\[0\]"):
        write_groups(path, [make_group(-2.0), make_group(bad)])
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["r.jsonl"]


def test_nothing_is_seen_before_the_file_is_whole(tmp_path):
    path = tmp_path / "r.jsonl"

    def groups():
        for _ in range(3):
            assert not path.exists()
            yield make_group(-1.0)

    write_groups(path, groups())
    assert len(read_groups(path)) == 3
