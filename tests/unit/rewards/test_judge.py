"""The judge against real sockets: both orders, the cache, and endpoints that hang, break, talk nonsense and die."""

from __future__ import annotations

import logging
import math
import threading

import numpy as np
import pytest

from sppo_megatron.config import JudgeConfig
from sppo_megatron.rewards.judge import Judge
from sppo_megatron.types import Group, Prompt, Response
from tests.unit.rewards.endpoint import Endpoint, completion, hang

IDS = np.array([1], dtype=np.int32)
STRENGTH = {"good": 2.0, "fair": 0.5, "poor": -1.0}
LEANING = 0.7  # of the judge, to what is shown first


@pytest.fixture
def serve(tmp_path):
    started = []
    template = tmp_path / "template.txt"
    template.write_text("{prompt}|{first}|{second}")

    def start(*answers, **changes):
        endpoints = [Endpoint(answer) for answer in answers]
        started.extend(endpoints)
        settings = {"timeout_s": 5.0, "retries": 1, "backoff_s": 0.01, "template": str(template)} | changes
        return Judge(JudgeConfig(urls=[endpoint.url for endpoint in endpoints], **settings)), endpoints

    yield start
    for endpoint in started:
        endpoint.close()


def make_group(*texts, prompt="p"):
    return Group(Prompt(0, IDS, prompt), [Response(IDS, text) for text in texts])


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def opinion(endpoint, message):
    """Bradley–Terry with a leaning to the first place; the other half of the probability is on another token."""
    _, first, second = message.split("|")
    p = sigmoid(STRENGTH[first] - STRENGTH[second] + LEANING)
    return completion("A" if p > 0.5 else "B", {"A": math.log(p / 2), "B": math.log((1 - p) / 2), "C": math.log(0.5)})


def expected_preference(names):
    p = [[sigmoid(STRENGTH[a] - STRENGTH[b] + LEANING) for b in names] for a in names]
    k = range(len(names))
    return [[0.5 if i == j else (p[i][j] + 1 - p[j][i]) / 2 for j in k] for i in k]


def test_both_orders_are_asked_and_averaged(serve):
    judge, [endpoint] = serve(opinion)
    [group] = judge.score([make_group("good", "fair", "poor")])
    np.testing.assert_allclose(group.preference, expected_preference(["good", "fair", "poor"]), atol=1e-12)
    asked = sorted(body["messages"][0]["content"] for body in endpoint.requests)
    assert asked == sorted(f"p|{a}|{b}" for a in STRENGTH for b in STRENGTH if a != b)
    assert all(body["model"] == "judge" and body["max_tokens"] == 1 for body in endpoint.requests)
    np.testing.assert_allclose([r.reward for r in group.responses], group.preference.mean(axis=1), atol=1e-12)
    assert [(r.correct, r.error) for r in group.responses] == [(None, None)] * 3
    counted = {"judge_questions": 6, "judge_cache_hits": 0, "judge_failed": 0, "judge_requests": 6}
    assert counted.items() <= judge.metrics.items()
    assert (judge.metrics["judge_prompt_tokens"], judge.metrics["judge_completion_tokens"]) == (42, 6)
    assert judge.metrics["judge_seconds"] > 0


def test_a_conversation_is_shown_as_one_and_never_as_the_policy_is_fed(serve):
    judge, [endpoint] = serve(opinion)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    prompt = Prompt(0, IDS, "<|im_start|>system", messages=messages)
    judge.score([Group(prompt, [Response(IDS, "good"), Response(IDS, "poor")])])
    asked = {body["messages"][0]["content"] for body in endpoint.requests}
    assert asked == {f"[system]\nBe brief.\n\n[user]\nHi|{pair}" for pair in ("good|poor", "poor|good")}


def test_letters_where_the_endpoint_gives_no_log_probs(serve):
    judge, _ = serve(lambda endpoint, message: completion({"x": "A", "y": "B", "z": "tie"}[message.split("|")[1]]))
    [group] = judge.score([make_group("x", "y", "z")])
    # x first wins, y first loses, z first ties: x over y in both orders, x over z in one and a tie in the other
    np.testing.assert_array_equal(group.preference, [[0.5, 1.0, 0.75], [0.0, 0.5, 0.25], [0.25, 0.75, 0.5]])


def test_equal_responses_tie_and_equal_questions_are_asked_once(serve):
    judge, [endpoint] = serve(opinion)
    groups = [make_group("good", "poor", "good"), make_group("poor", "good"), make_group("fair")]
    groups = judge.score(groups)
    assert len(endpoint.requests) == 2
    p = expected_preference(["good", "poor"])[0][1]
    np.testing.assert_allclose(groups[0].preference, [[0.5, p, 0.5], [1 - p, 0.5, 1 - p], [0.5, p, 0.5]])
    np.testing.assert_allclose(groups[1].preference, [[0.5, 1 - p], [p, 0.5]])
    np.testing.assert_array_equal(groups[2].preference, [[0.5]])


def test_the_cache_outlives_the_judge_and_knows_the_model(serve, tmp_path):
    cache = {"cache_path": str(tmp_path / "cache" / "answers.sqlite")}
    judge, _ = serve(opinion, **cache)
    [first] = judge.score([make_group("good", "fair")])
    judge.close()
    again, [endpoint] = serve(opinion, **cache)
    [second] = again.score([make_group("good", "fair", "poor")])
    assert len(endpoint.requests) == 4 and again.metrics["judge_cache_hits"] == 2
    assert second.preference[0, 1] == first.preference[0, 1]
    other, [endpoint] = serve(opinion, **cache, request={"temperature": 0.5})
    other.score([make_group("good", "fair")])
    assert [body["temperature"] for body in endpoint.requests] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("answer", "error", "num_requests"),
    [
        (hang(4.0), "timed out", 4),
        (lambda endpoint, message: (500, {"error": "broken"}), "answered 500", 4),
        (lambda endpoint, message: (200, b"<html>nonsense"), "isn't JSON", 4),
        (lambda endpoint, message: (400, {"error": "too long"}), "answered 400", 2),
        (lambda endpoint, message: {"hello": 1}, "no chat completion", 2),
        (lambda endpoint, message: [], "no chat completion", 2),
        (lambda endpoint, message: completion("A, since it is better"), "neither A, B nor tie", 2),
        (lambda endpoint, message: completion(None), "neither A, B nor tie", 2),
        (lambda endpoint, message: completion("x", {"x": -0.1}), "neither A, B nor tie", 2),
    ],
    ids=["hangs", "500", "html", "400", "object", "list", "talks", "silent", "other tokens"],
)
def test_a_pair_without_an_answer_is_a_tie(serve, caplog, answer, error, num_requests):
    """Only bad|good and good|bad fail; what can't get better isn't tried again."""

    def partly(endpoint, message):
        return answer(endpoint, message) if "bad" in message else opinion(endpoint, message)

    judge, [endpoint] = serve(partly, timeout_s=1.0 if error == "timed out" else 20.0)
    with caplog.at_level(logging.WARNING):
        [group, other] = judge.score([make_group("bad", "good"), make_group("good", "poor")])
    np.testing.assert_array_equal(group.preference, np.full((2, 2), 0.5))
    assert all(error in response.error and response.reward == 0.5 for response in group.responses)
    np.testing.assert_allclose(other.preference, expected_preference(["good", "poor"]), atol=1e-12)
    assert [response.error for response in other.responses] == [None, None]
    assert len([body for body in endpoint.requests if "bad" in body["messages"][0]["content"]]) == num_requests
    assert judge.metrics["judge_failed"] == 2 and judge.metrics["judge_requests"] == num_requests + 2
    assert "failed on 2 of 4 questions" in caplog.text and error in caplog.text
    assert "taken out" not in caplog.text, "the server answers its health check: it isn't to blame"


def test_failures_are_not_cached(serve, tmp_path):
    broken = threading.Event()
    broken.set()
    judge, _ = serve(
        lambda e, message: (500, {}) if broken.is_set() else opinion(e, message), cache_path=str(tmp_path / "cache")
    )
    assert judge.score([make_group("good", "poor")])[0].responses[0].error
    broken.clear()
    [group] = judge.score([make_group("good", "poor")])
    assert judge.metrics["judge_cache_hits"] == 0
    np.testing.assert_allclose(group.preference, expected_preference(["good", "poor"]), atol=1e-12)


def test_a_server_that_stumbles_is_asked_again(serve):
    failures = iter([True])
    judge, [endpoint] = serve(lambda e, m: (503, {}) if next(failures, False) else opinion(e, m))
    [group] = judge.score([make_group("good", "poor")])
    np.testing.assert_allclose(group.preference, expected_preference(["good", "poor"]), atol=1e-12)
    assert len(endpoint.requests) == 3 and judge.metrics["judge_failed"] == 0


def test_a_lost_server_costs_no_answer(serve, caplog):
    judge, [lost, alive] = serve(opinion, opinion)
    lost.close()
    groups = [make_group("good", "fair", "poor", prompt=str(i)) for i in range(5)]
    with caplog.at_level(logging.WARNING):
        groups = judge.score(groups)
    for group in groups:
        np.testing.assert_allclose(group.preference, expected_preference(list(STRENGTH)), atol=1e-12)
        assert [response.error for response in group.responses] == [None] * 3
    assert judge.metrics["judge_failed"] == 0 and len(alive.requests) == 30
    assert f"the judge server {lost.url} is taken out" in caplog.text


def test_without_any_server_the_run_lives_on(serve):
    judge, [endpoint] = serve(opinion)
    endpoint.close()
    for _ in range(2):  # the second time it is known to be lost, and looked for again
        [group] = judge.score([make_group("good", "poor")])
        np.testing.assert_array_equal(group.preference, np.full((2, 2), 0.5))
        assert "no judge server is left" in group.responses[0].error
        assert judge.metrics["judge_failed"] == 2


def test_a_lost_server_comes_back(serve):
    judge, _ = serve(opinion, opinion)
    judge._pool.set_alive([])  # as if both had been lost
    judge.score([make_group("good", "fair", "poor")])
    assert judge.metrics["judge_failed"] == 0
    assert len(judge._pool.alive) == 2


def test_no_more_requests_at_once_than_configured(serve):
    together = threading.Barrier(2)

    def answer(endpoint, message):
        together.wait(timeout=5)  # two must be at it at once
        return opinion(endpoint, message)

    judge, [endpoint] = serve(answer, concurrency=2)
    judge.score([make_group("good", "fair", "poor")])
    assert endpoint.most_under_way == 2 and judge.metrics["judge_failed"] == 0


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(serve, monkeypatch, caplog, tmp_path):
    endpoint = Endpoint(opinion, key="a secret")
    config = JudgeConfig(urls=[endpoint.url], api_key_env="MY_KEY", cache_path=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"401.*reward\.judge\.api_key_env"):
        Judge(config)
    monkeypatch.setenv("MY_KEY", "a secret")
    endpoint.answer = lambda e, message: (400, {"error": "no"})
    with caplog.at_level(logging.DEBUG):
        [group] = Judge(config).score([make_group("good", "poor")])
    endpoint.close()
    assert "answered 400" in group.responses[0].error
    assert "a secret" not in caplog.text + str(group.responses) + str(config)
    assert b"a secret" not in (tmp_path / "cache").read_bytes()


def test_a_judge_that_answers_something_else_is_noticed(serve, caplog):
    mass = {"A": math.log(0.01), "B": math.log(0.03), "<think>": math.log(0.96)}
    judge, _ = serve(lambda endpoint, message: completion("<think>", mass))
    with caplog.at_level(logging.WARNING):
        [group] = judge.score([make_group("x", "y")])
    np.testing.assert_allclose(group.preference, np.full((2, 2), 0.5))  # a leaning to B alone cancels
    assert "A and B together a probability of 0.04" in caplog.text


def test_what_cannot_work_is_found_at_the_start(serve, tmp_path):
    two = Endpoint(opinion, names=("one", "two"))
    try:
        with pytest.raises(ValueError, match=r"reward\.judge\.model=None must name.*serves one, two"):
            Judge(JudgeConfig(urls=[two.url]))
        with pytest.raises(ValueError, match=r"reward\.judge\.model=three must name"):
            Judge(JudgeConfig(urls=[two.url], model="three"))
        assert Judge(JudgeConfig(urls=[two.url], model="two")).metrics == {}
        with pytest.raises(ValueError, match=r"reward\.judge\.cache_path"):
            Judge(JudgeConfig(urls=[two.url], model="two", cache_path=str(tmp_path)))
    finally:
        two.close()
    with pytest.raises(ValueError, match=r"no judge answers at reward\.judge\.urls"):
        Judge(JudgeConfig(urls=[two.url]))
