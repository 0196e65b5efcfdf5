"""One pass over a rollout file: the numbers of each response, against hand-worked ones."""

import json

import numpy as np
import pytest

from sppo_megatron.data.rollout_file import write_groups
from sppo_megatron.types import Group, Prompt, Response
from sppo_report.responses import group_scores, log_prob_differences, read_records, read_rows


def response(reward, log_probs, **fields):
    log_probs = np.array(log_probs, dtype=np.float32)
    return Response(np.arange(3, 3 + len(log_probs)), rollout_log_probs=log_probs, reward=reward, **fields)


def test_a_file_that_a_run_wrote(tmp_path):
    path = tmp_path / "iteration_000000.jsonl"
    prompt = Prompt(0, np.array([1, 2]))
    write_groups(
        path,
        [
            Group(prompt, [response(1.0, [-0.5, -1.5]), response(0.0, [-2.0], finish_reason="length", error="late")]),
            Group(prompt, [response(0.25, [-0.5]), response(0.25, [-1.0])]),
            Group(prompt, [response(0.25, [-0.5])]),
        ],
    )
    found = read_rows(path)
    assert (found.num_groups, found.degenerate, found.problems) == (3, [(0.25, 1)], [])
    assert [(row.line, row.place, row.length, row.score, row.mean_log_prob) for row in found.rows] == [
        (1, 0, 2, 1.0, -1.0),
        (1, 1, 1, 0.0, -2.0),
        (2, 0, 1, 0.25, -0.5),
        (2, 1, 1, 0.25, -1.0),
        (3, 0, 1, 0.25, -0.5),
    ]
    assert [(row.is_truncated, row.is_failed, row.is_degenerate) for row in found.rows] == [
        (False, False, False),
        (True, True, False),
        (False, False, True),
        (False, False, True),
        (False, False, False),  # one response has nothing to differ from
    ]
    assert found.rows[2].content == found.rows[3].content != found.rows[4].content
    assert [number for number, _ in read_records(path, {1, 3})] == [1, 3]


def test_the_mismatch_is_the_sum_over_the_response():
    record = {"token_ids": [5, 6, 7], "rollout_log_probs": [-1.0, -2.0, -0.5], "old_log_probs": [-1.25, -1.5, -0.5]}
    assert log_prob_differences(record) == [-0.25, 0.5, 0.0]
    for broken in ([-1.0, -2.0], [-1.0, None, -1.0], "text", [-1.0, True, -1.0], [-1.0, float("nan"), -1.0]):
        assert log_prob_differences(record | {"old_log_probs": broken}) is None


def test_mismatch_of_a_row(tmp_path):
    path = tmp_path / "iteration_000000.jsonl"
    fields = {"token_ids": [5, 6], "rollout_log_probs": [-1.0, -2.0], "old_log_probs": [-1.5, -2.25]}
    path.write_text(json.dumps({"responses": [fields, {"token_ids": []}]}))
    first, second = read_rows(path).rows
    assert first.mismatch == 0.75
    assert (second.mismatch, second.mean_log_prob, second.score) == (None, None, None)


def test_scores_without_rewards_are_win_rates():
    responses = [{"token_ids": [1]}, {"token_ids": [2]}]
    matrix = [[0.5, 0.9], [0.1, 0.5]]
    assert group_scores({"responses": responses, "preference": matrix}) == pytest.approx([0.7, 0.3])
    assert group_scores({"responses": responses, "preference": [[0.5, "x"], [0.1, 0.5]]}) == [None, pytest.approx(0.3)]
    assert group_scores({"responses": responses, "preference": "none"}) == [None, None]
    rewarded = [entry | {"reward": place} for place, entry in enumerate(responses)]
    assert group_scores({"responses": rewarded, "preference": matrix}) == [0.0, 1.0]


def test_lines_that_hold_no_group_are_named(tmp_path):
    path = tmp_path / "iteration_000003.jsonl"
    good = json.dumps({"responses": [{"token_ids": [1], "reward": "high", "rollout_log_probs": "x"}]})
    bad = ['{"responses": 3}', '{"responses": [4]}', '{"responses": [{"token_ids": 4}]}', "{}", '{"torn": ']
    path.write_text("\n".join([*bad, good]))
    found = read_rows(path)
    assert (found.num_groups, len(found.rows)) == (1, 1)
    assert found.rows[0].score is None
    assert found.problems == [
        "iteration_000003.jsonl: not a JSON object in line 5, left out",
        "iteration_000003.jsonl: no list of responses with token_ids in lines 1, 2, 3, 4, left out",
    ]
