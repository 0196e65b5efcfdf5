"""A pairwise judge behind OpenAI-compatible endpoints: both orders of every pair, averaged into a preference matrix."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sppo_megatron.cluster.http_client import (
    AccessError,
    HttpClient,
    OverloadedError,
    RequestError,
    ServerError,
    wait_for,
    with_retries,
)
from sppo_megatron.cluster.server_pool import NoServerLeft, Pool
from sppo_megatron.config import JudgeConfig
from sppo_megatron.errors import ConfigError
from sppo_megatron.rewards.judge_cache import AnswerCache
from sppo_megatron.rewards.judge_question import Reading, question_key, read_answer, request_body, used_tokens
from sppo_megatron.rewards.preference import Pair, ordered_pairs, with_preference
from sppo_megatron.rewards.scorer import ScoringError
from sppo_megatron.rewards.text import JUDGE_TEMPLATE, Decode, load_template, printable, render, texts_of, transcript
from sppo_megatron.types import Group

logger = logging.getLogger(__name__)

ANSWERS_A_COMMIT = 256


@dataclass(frozen=True, slots=True)
class Failure:
    """A question without an answer. why: the last attempt's error."""

    why: str


class Judge:
    """metrics, of the last call: judge_questions, judge_cache_hits, judge_failed, judge_requests (retries too),
    judge_prompt_tokens, judge_completion_tokens and judge_seconds, the requests' latencies added up.

    Raises ConfigError if no server answers, they serve different models, one refuses, or template or cache are bad.
    """

    needs_answer = False
    gives_preferences = True

    def __init__(self, config: JudgeConfig, decode: Decode | None = None) -> None:
        self._config = config
        self._decode = decode
        self._template = load_template(config.template, JUDGE_TEMPLATE)
        key = os.environ.get(config.api_key_env)
        clients = [
            HttpClient(url, api_key=key, model=config.model, timeout_s=config.timeout_s, settings="reward.judge")
            for url in config.urls
        ]
        # Attempts are counted here: after the last, it depends on the server whether it is lost or the question is.
        self._pool = Pool(clients, concurrency=config.concurrency, retries=0, backoff_s=0.0, kind="judge")
        self._model = _served_model(self._pool, config.model)
        self._cache = AnswerCache(config.cache_path) if config.cache_path else None
        self._unsaved: dict[str, float] = {}
        self._letter_masses: list[float] = []
        self.metrics: dict[str, float] = {}

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """Preferences, and every response's reward its win rate. See `Scorer`.

        A pair with an order that stays without an answer is a tie, recorded as an error of both responses.
        Raises ScoringError if the endpoint refuses the key, or stays overloaded beyond all patience.
        """
        questions, bodies = self._questions(groups)
        known = self._cache.get(bodies) if self._cache is not None else {}
        self._start_metrics(len(bodies), len(known))
        answers: dict[str, float | Failure] = {**known, **self._ask_all(bodies, known)}
        scored = []
        for group, pairs in zip(groups, questions, strict=True):
            found = {pair: answers[key] for pair, key in pairs.items()}
            first_wins = {pair: answer for pair, answer in found.items() if isinstance(answer, float)}
            failures = {pair: answer.why for pair, answer in found.items() if isinstance(answer, Failure)}
            scored.append(with_preference(group, first_wins, failures))
        self._report([answer.why for answer in answers.values() if isinstance(answer, Failure)])
        return scored

    def close(self) -> None:
        if self._cache is not None:
            self._cache.close()

    def _questions(self, groups: Sequence[Group]) -> tuple[list[dict[Pair, str]], dict[str, dict[str, Any]]]:
        """The key of every ordered pair of every group, and the request of every key. Equal questions are one."""
        questions, bodies = [], {}
        for group in groups:
            prompt, texts = transcript(group.prompt, self._decode), texts_of(group, self._decode)
            keys = {}
            for i, j in ordered_pairs(texts):
                body = request_body(render(self._template, prompt, texts[i], texts[j]), self._model, self._config)
                keys[i, j] = question_key(body)
                bodies[keys[i, j]] = body
            questions.append(keys)
        return questions, bodies

    def _ask_all(self, bodies: dict[str, dict[str, Any]], known: dict[str, float]) -> dict[str, float | Failure]:
        """The answer of every question that isn't known. Servers that were lost and answer again take part."""
        missing = [key for key in bodies if key not in known]
        if not missing:
            return {}
        if len(self._pool.alive) < len(self._pool.clients):
            self._pool.set_alive([client.url for client in self._pool.clients if wait_for(_is_alive(client))])
        try:
            found = self._pool.run(missing, lambda client, key: self._ask(client, key, bodies[key]))
        except AccessError as error:
            raise ScoringError("can't be asked the questions", str(error)) from error
        except NoServerLeft as error:
            lost = Failure(f"no judge server is left: {error}")
            return {key: error.answers.get(place, lost) for place, key in enumerate(missing)}
        finally:
            self._save_answers()
        return dict(zip(missing, found, strict=True))

    def _save_answers(self) -> None:
        """Puts what was answered since the last time into the cache; a run that is killed loses no more than that."""
        unsaved, self._unsaved = self._unsaved, {}
        if self._cache is not None and unsaved:
            self._cache.put(unsaved)

    async def _ask(self, client: HttpClient, key: str, body: dict[str, Any]) -> float | Failure:
        """On the event loop. Raises ServerError if the server is lost, so that the question goes elsewhere."""
        timeout_s = self._config.timeout_s

        async def attempt() -> Reading:
            started, reply, reading = time.perf_counter(), None, None
            try:
                reply = await client.call("POST", "/v1/chat/completions", body, timeout_s)
                reading = read_answer(reply)
                return reading
            finally:
                self._count(started, reply, reading)

        try:
            reading = await with_retries(attempt, self._config.retries, self._config.backoff_s)
        except AccessError:
            raise
        except OverloadedError as error:  # no verdict, and another server has questions enough
            raise ScoringError("can't be asked the questions", str(error)) from error
        except ServerError as error:
            if await _is_alive(client):
                return Failure(printable(str(error)))
            raise
        except (RequestError, ValueError) as error:  # asked again, the answer would be the same
            return Failure(printable(str(error)))
        self._unsaved[key] = reading.first_wins
        if len(self._unsaved) >= ANSWERS_A_COMMIT:
            self._save_answers()
        return reading.first_wins

    # ---------------------------------------------------------------- what is counted

    def _start_metrics(self, num_questions: int, num_hits: int) -> None:
        names = ("failed", "requests", "prompt_tokens", "completion_tokens", "seconds")
        self.metrics = {"judge_questions": float(num_questions), "judge_cache_hits": float(num_hits)}
        self.metrics |= {f"judge_{name}": 0.0 for name in names}
        self._letter_masses = []

    def _count(self, started: float, reply: Any = None, reading: Reading | None = None) -> None:
        prompt_tokens, completion_tokens = used_tokens(reply)
        self.metrics["judge_requests"] += 1
        self.metrics["judge_seconds"] += time.perf_counter() - started
        self.metrics["judge_prompt_tokens"] += prompt_tokens
        self.metrics["judge_completion_tokens"] += completion_tokens
        if reading is not None and reading.letter_mass is not None:
            self._letter_masses.append(reading.letter_mass)

    def _report(self, failures: list[str]) -> None:
        m = self.metrics
        m["judge_failed"] = float(len(failures))
        logger.info(
            "judge: %d questions, %d from the cache, %d failed; %d requests of %.3g s each, %d + %d tokens",
            m["judge_questions"],
            m["judge_cache_hits"],
            m["judge_failed"],
            m["judge_requests"],
            m["judge_seconds"] / max(m["judge_requests"], 1),
            m["judge_prompt_tokens"],
            m["judge_completion_tokens"],
        )
        if failures:
            logger.warning(
                "the judge failed on %d of %d questions, whose pairs count as ties; the first error: %s",
                len(failures),
                m["judge_questions"],
                failures[0],
            )
        mass = sum(self._letter_masses) / max(len(self._letter_masses), 1)
        if self._letter_masses and mass < 0.5:
            logger.warning(
                "the judge gives A and B together a probability of %.2g on average: it answers something else; "
                "reward.judge.template must ask for one letter, reward.judge.request can turn thinking off",
                mass,
            )


def _served_model(pool: Pool[HttpClient], model: str | None) -> str:
    """The model that all servers serve. Those that don't answer are taken out. Raises ConfigError."""
    served: dict[str, list[str]] = {}
    problems = []
    for client in pool.clients:
        try:
            served[client.url] = [entry["id"] for entry in client.get("/v1/models")["data"]]
        except (ServerError, KeyError, TypeError) as error:
            problems.append(str(error))
        except RequestError as error:
            raise ConfigError(str(error)) from error
    if not served:
        raise ConfigError(f"no judge answers at reward.judge.urls: {'; '.join(problems)}")
    pool.set_alive(list(served))
    everywhere = set.intersection(*map(set, served.values()))
    if model is None and len(everywhere) == 1:
        return everywhere.pop()
    if model is None or model not in everywhere:
        offers = "; ".join(f"{url} serves {', '.join(names)}" for url, names in served.items())
        raise ConfigError(f"reward.judge.model={model} must name what every server serves, and {offers}")
    return model


async def _is_alive(client: HttpClient) -> bool:
    """Whether the server answers at all; an endpoint that isn't vLLM's may not know /health."""
    try:
        await client.call("GET", "/health")
    except ServerError:
        return False
    except RequestError:
        pass
    return True
