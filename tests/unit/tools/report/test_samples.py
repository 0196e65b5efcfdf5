"""What the page gets of a response: everything that was stored, cut to its limits, whatever was stored."""

import json

import pytest

from sppo_report.samples import MAX_TEXT, SampleLimits, shown_iterations

RESPONSE = {
    "token_ids": [4, 5, 6],
    "text": "abc",
    "rollout_log_probs": [-0.5, -1.0, -0.25],
    "old_log_probs": [-0.75, -1.0, -0.125],
    "finish_reason": "stop",
    "reward": 0.5,
    "correct": True,
    "policy_version": 12,
}
GROUP = {"prompt_token_ids": [1, 2], "prompt": "two?", "answer": "2", "responses": [RESPONSE]}


def only_sample(make_run, group, limits=SampleLimits(), token_texts=None):  # noqa: B008  (frozen)
    ((iteration,),) = [list(shown_iterations(make_run(rollouts={3: [group]}), limits, token_texts))]
    json.dumps(iteration, allow_nan=False)
    return iteration["samples"][0]


def test_everything_that_was_stored(make_run):
    sample = only_sample(make_run, GROUP, token_texts=lambda ids: [f"<{token_id}>" for token_id in ids])
    expected = {
        "prompt": "two?", "answer": "2", "text": "abc", "scores": [0.5], "finish_reason": "stop", "correct": True,
        "policy_version": "12", "length": 3, "left_out": 0, "token_ids": ["4", "5", "6"],
        "token_texts": ["<4>", "<5>", "<6>"], "log_probs": [-0.5, -1.0, -0.25], "differences": [-0.25, 0.0, 0.125],
        "mismatch": 0.125, "group": 1, "place": 1, "error": None, "win_rates": None, "messages": None, "sampled": None,
    }  # fmt: skip
    assert {name: sample[name] for name in expected} == expected


def test_little_was_stored(make_run):
    group = {"prompt_token_ids": [1, 2], "responses": [{"token_ids": [4]}]}
    sample = only_sample(make_run, group)
    assert sample["prompt"] == "2 tokens: 1 2"
    for name in ("answer", "text", "correct", "policy_version", "mismatch", "log_probs", "differences", "token_texts"):
        assert sample[name] is None
    assert sample["scores"] == [None]


@pytest.mark.parametrize("wrong", [{}, [], "x", 3, True, None, [1, "2", None], 10**400])
def test_fields_of_a_wrong_type_cost_nothing_else(make_run, wrong):
    response = dict.fromkeys(RESPONSE, wrong) | {"token_ids": [4, 5, 6]}
    sample = only_sample(
        make_run,
        dict.fromkeys(("prompt_token_ids", "prompt", "answer", "preference"), wrong)
        | {"responses": [response, RESPONSE]},
        SampleLimits(responses=1),
    )
    assert (sample["length"], sample["token_ids"]) == (3, ["4", "5", "6"])


def test_a_long_response_keeps_both_ends(make_run):
    count = 1000
    response = {"token_ids": list(range(count)), "rollout_log_probs": [-float(i) for i in range(count)]}
    sample = only_sample(make_run, {"responses": [response]}, SampleLimits(tokens=30))
    shown = [*range(20), *range(count - 10, count)]
    assert sample["token_ids"] == [str(i) for i in shown]
    assert sample["log_probs"] == [-float(i) for i in shown]
    assert (sample["length"], sample["head"], sample["left_out"]) == (count, 20, count - 30)


def test_a_long_text_is_cut(make_run):
    sample = only_sample(make_run, GROUP | {"prompt": "x" * (MAX_TEXT + 5)})
    assert sample["prompt"] == "x" * MAX_TEXT + " … and 5 more characters"


def test_totals_and_limits(make_run):
    groups = [{"responses": [RESPONSE | {"reward": reward, "token_ids": [k, 1, 2]} for k in range(3)]}
              for reward in (0, 1, 1)]  # fmt: skip
    groups[0]["responses"][0]["error"] = "late"
    groups[1]["responses"][1]["finish_reason"] = "length"
    run = make_run(rollouts=dict.fromkeys(range(7), groups))
    with open(run.rollout_files[6], "a") as file:
        file.write("torn")
    first, second, last = shown_iterations(run, SampleLimits(iterations=3, responses=2), None)
    assert [entry["iteration"] for entry in (first, second, last)] == [0, 3, 6]
    assert (first["groups"], first["responses"], first["truncated"], first["failed"]) == (3, 9, 1, 1)
    assert first["score_mean"] == pytest.approx(2 / 3)
    assert first["degenerate"] == [(1.0, 2), (0.0, 1)]
    assert len(first["samples"]) == 2
    assert run.problems[-1] == "iteration_000006.jsonl: not a JSON object in line 4, left out"


def test_a_conversation_is_shown_by_its_turns(make_run):
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "add"}, {"type": "text", "text": "2 and 3"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "sum", "arguments": "2,3"}]},
        {"role": "tool", "content": "5", "tool_call_id": "c1"},
    ]
    sample = only_sample(make_run, GROUP | {"messages": messages})
    assert [(message["role"], message["text"]) for message in sample["messages"]] == [
        ("system", "be brief"),
        ("user", "add\n2 and 3"),
        ("assistant", '{"tool_calls": [{"name": "sum", "arguments": "2,3"}]}'),
        ("tool", '5\n{"tool_call_id": "c1"}'),
    ]


@pytest.mark.parametrize("wrong", [{}, [], "x", 3, True, [1], [{"role": {}, "content": [3, {"a": 1}]}], [{}]])
def test_messages_of_any_form_cost_nothing_else(make_run, wrong):
    assert only_sample(make_run, GROUP | {"messages": wrong})["length"] == 3


def test_tokens_that_were_given_are_marked(make_run):
    sample = only_sample(make_run, GROUP | {"responses": [RESPONSE | {"loss_mask": [1, 0, 1]}]})
    assert sample["sampled"] == [True, False, True]
