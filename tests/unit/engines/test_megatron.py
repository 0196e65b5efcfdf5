"""The in-process engine under the collector, over a real token generator: a tiny Hugging Face model, sampled one
sequence at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from sppo_megatron.engines.base import Request, sample_uniforms
from sppo_megatron.engines.megatron import MegatronEngine
from sppo_megatron.policy.generate.sampling import sample_tokens
from sppo_megatron.rollout.collector import Collector
from sppo_megatron.types import Prompt, SamplingParams

VOCAB = 12
STOP = frozenset({3, 7})
LENGTH = 6


class PlainGenerator:
    """Continues every sequence by full forward passes. Remembers how it was called."""

    def __init__(self):
        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, initializer_range=0.5,
        )  # fmt: skip
        self.model = AutoModelForCausalLM.from_config(config).eval()
        self.batch_sizes: list[int] = []

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[np.ndarray],
        uniforms: Callable[[int], np.ndarray],
        params: SamplingParams,
        batch_size: int,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        self.batch_sizes.append(batch_size)
        return [self._continue(prompt, uniforms(place), params) for place, prompt in enumerate(prompts)]

    def _continue(self, prompt, draws, params):
        ids, log_probs = prompt.tolist(), []
        for draw in draws[: params.max_new_tokens]:
            logits = self.model(torch.tensor([ids])).logits[:, -1]
            token, log_prob = sample_tokens(logits, torch.tensor([draw]), params)
            ids.append(int(token))
            log_probs.append(float(log_prob))
            if ids[-1] in params.stop_token_ids:
                break
        return np.array(ids[len(prompt) :], np.int32), np.array(log_probs, np.float32)


class Letters:
    """A tokenizer that spells: token 0 is "a". Stop tokens are special."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(chr(ord("a") + i) for i in ids if not (skip_special_tokens and i in STOP))


@pytest.fixture(scope="module")
def generator():
    return PlainGenerator()


def make_collector(generator, *, tokenizer=None, samples=4, seed=5, batch_size=3, **fields):
    params = SamplingParams(max_new_tokens=LENGTH, stop_token_ids=STOP, **fields)
    engine = MegatronEngine(lambda: generator, batch_size)
    decode = tokenizer and (lambda each: [tokenizer.decode(ids.tolist(), skip_special_tokens=True) for ids in each])
    return Collector(engine, params, samples, seed, decode)


PROMPTS = [Prompt(8, np.array([1, 2], np.int32)), Prompt(0, np.array([4], np.int32)), Prompt(8, np.array([1, 2]))]


def tokens_of(groups):
    return [[response.token_ids.tolist() for response in group.responses] for group in groups]


def test_groups_in_order_with_their_own_uniforms(generator):
    groups = make_collector(generator, tokenizer=Letters()).collect(PROMPTS, iteration=2)
    assert [group.prompt for group in groups] == PROMPTS
    assert generator.batch_sizes[-1] == 3
    for place, group in enumerate(groups):
        assert len(group.responses) == 4
        for sample, response in enumerate(group.responses):
            draws = sample_uniforms((5, 2, place), sample, LENGTH)
            params = SamplingParams(max_new_tokens=LENGTH, stop_token_ids=STOP)
            ((ids, log_probs),) = generator.generate([group.prompt.token_ids], [draws].__getitem__, params, 1)
            assert response.token_ids.tolist() == ids.tolist()
            assert response.rollout_log_probs.tolist() == log_probs.tolist()
            assert len(response.rollout_log_probs) == len(response.token_ids)
            assert response.reward is None and response.error is None
    flat = [tuple(ids) for group in tokens_of(groups) for ids in group]
    assert len(set(flat)) > len(flat) // 2  # samples of one prompt differ
    assert tokens_of(groups)[0] != tokens_of(groups)[2]  # the same prompt in another place is sampled anew


def test_log_probs_are_the_models(generator):
    (group,) = make_collector(generator, temperature=0.8).collect(PROMPTS[:1], 0)
    for response in group.responses:
        ids = torch.tensor([[*group.prompt.token_ids.tolist(), *response.token_ids.tolist()]])
        with torch.no_grad():
            log_probs = (generator.model(ids).logits[0].double() / 0.8).log_softmax(-1)
        start = len(group.prompt.token_ids)
        expected = [float(log_probs[start + i - 1, token]) for i, token in enumerate(response.token_ids.tolist())]
        np.testing.assert_allclose(response.rollout_log_probs, expected, atol=1e-5)


def test_finish_reason(generator):
    groups = make_collector(generator, samples=24).collect(PROMPTS, 0)
    reasons = set()
    for group in groups:
        for response in group.responses:
            ids = response.token_ids.tolist()
            assert not STOP & set(ids[:-1])
            assert response.finish_reason == ("stop" if ids[-1] in STOP else "length")
            assert response.finish_reason == "stop" or len(ids) == LENGTH
            reasons.add((response.finish_reason, len(ids) == LENGTH))
    assert reasons == {("stop", False), ("stop", True), ("length", True)}  # every case was there


def test_text(generator):
    groups = make_collector(generator, tokenizer=Letters()).collect(PROMPTS, 0)
    for group in groups:
        for response in group.responses:
            kept = [i for i in response.token_ids.tolist() if i not in STOP]
            assert response.text == "".join("abcdefghijkl"[i] for i in kept)
    (group,) = make_collector(generator).collect(PROMPTS[:1], 0)
    assert all(response.text is None for response in group.responses)


def test_seed_iteration_and_nothing_else(generator):
    base = tokens_of(make_collector(generator).collect(PROMPTS, 1))
    collector = make_collector(generator, batch_size=100)
    assert tokens_of(collector.collect(PROMPTS, 1)) == base
    assert tokens_of(collector.collect(PROMPTS, 1)) == base  # no state between calls
    assert tokens_of(collector.collect(PROMPTS[:1], 1)) == base[:1]
    assert tokens_of(collector.collect(PROMPTS, 2)) != base
    assert tokens_of(make_collector(generator, seed=6).collect(PROMPTS, 1)) != base
    assert [group[:2] for group in base] == tokens_of(make_collector(generator, samples=2).collect(PROMPTS, 1))


def test_no_prompts(generator):
    assert make_collector(generator).collect([], 0) == []


def test_an_empty_continuation_is_cut_off():
    class Silent:
        def generate(self, prompts, uniforms, params, batch_size):
            return [(np.zeros(0, np.int32), np.zeros(0, np.float32)) for _ in prompts]

    (group,) = make_collector(Silent(), tokenizer=Letters(), samples=1).collect(PROMPTS[:1], 0)
    assert (group.responses[0].finish_reason, group.responses[0].text) == ("length", "")


def test_a_request_may_have_less_room_than_the_others(generator):
    engine = MegatronEngine(lambda: generator, 8)
    params = SamplingParams(max_new_tokens=LENGTH)
    prompt = PROMPTS[0].token_ids
    [[long], [short]] = engine.generate([Request(prompt, (5, 0, 0)), Request(prompt, (5, 0, 0), 1, 2)], params)
    assert len(long.token_ids) == LENGTH
    assert short.token_ids.tolist() == long.token_ids[:2].tolist() and len(short.log_probs) == 2


def test_pushing_records_the_version_and_moves_nothing(generator):
    def weights():
        raise AssertionError("the weights were exported")
        yield

    collector = make_collector(generator)
    assert collector.collect(PROMPTS[:1], 0)[0].responses[0].policy_version is None
    for version in (0, 1, 7):
        assert collector.engine.load_weights(weights(), version) == 0
        assert collector.collect(PROMPTS[:1], 0)[0].responses[0].policy_version == version
    with pytest.raises(ValueError, match="version 6 are older than version 7"):
        collector.engine.load_weights(weights(), 6)
    assert collector.engine.weight_version == 7
