"""Pushes into a real vLLM engine in this process: what goes wrong on the way is noticed."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, Qwen2Config

from sppo_megatron.cluster.interrupt import Interrupted, StopSignals
from sppo_megatron.engines import kind
from sppo_megatron.engines.base import Request
from sppo_megatron.engines.probe import BOUNDS, WeightProbe
from sppo_megatron.engines.registry import ENGINES
from sppo_megatron.engines.vllm.engine import VllmEngine
from sppo_megatron.engines.vllm.replica import STEPS_BETWEEN_CHECKS, EngineSettings, VllmReplica
from sppo_megatron.errors import ConfigError, TrainingError
from sppo_megatron.types import SamplingParams
from tests.installed import needs_vllm

pytestmark = needs_vllm

REQUEST = Request(np.array([5, 6, 7], np.int32), (3,))
STEP = {"max_num_batched_tokens": 32}  # tokens of a step: as many as of a sequence
PARAMS = SamplingParams(12, temperature=0.7, stop_token_ids=frozenset([1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    Qwen2Config(
        vocab_size=96,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def replica(folder: Path):
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.get_num_threads()  # noqa: NPY002
    replica = VllmReplica(
        EngineSettings(folder, "fp32", 32, max_num_seqs=8, kv_cache_memory_mib=16, engine_args=STEP), world_size=1
    )
    assert torch.equal(before[0], torch.get_rng_state()), "vLLM's start has seeded torch"
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert before[2] == torch.get_num_threads()
    yield replica
    replica.close()
    assert dist.is_initialized(), "vLLM has ended the trainer's process group"
    dist.destroy_process_group()


def make_model(folder: Path, seed: int):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(Qwen2Config.from_pretrained(folder), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def weights_of(model):
    """As the trainer exports them: a tied head comes once, as the embedding."""
    return ((name, tensor) for name, tensor in model.state_dict().items() if name != "lm_head.weight")


def log_probs_by(model):
    """The trainer's side of the probe, by plain transformers."""

    def compute(sequences):
        found = []
        for response in sequences.split(sequences.token_ids):
            ids = torch.from_numpy(np.concatenate([REQUEST.token_ids, response])).long()[None]
            with torch.no_grad():
                logits = model(ids).logits[0, len(REQUEST.token_ids) - 1 : -1].double() / PARAMS.temperature
            targets = torch.from_numpy(response).long()[:, None]
            found.append(torch.log_softmax(logits, -1).gather(1, targets)[:, 0].float().numpy())
        return np.concatenate(found), 0.0

    return compute


def probe(replica: VllmReplica) -> WeightProbe:
    return WeightProbe(VllmEngine(replica, 1), REQUEST, PARAMS, BOUNDS["fp32"])


def test_pushes_one_after_the_other(folder: Path, replica: VllmReplica) -> None:
    engine = VllmEngine(replica, 1)
    for version, seed in enumerate((1, 2, 3)):
        model = make_model(folder, seed)
        num_bytes = engine.load_weights(weights_of(model), version)
        assert num_bytes == sum(tensor.nbytes for _, tensor in weights_of(model))
        assert engine.weight_version == version
        assert probe(replica).check(log_probs_by(model)) < 1e-5


def test_generating_leaves_the_trainers_randomness_alone(folder: Path, replica: VllmReplica) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    replica.generate([replace(REQUEST, num_samples=2)], PARAMS)
    assert torch.equal(before, torch.get_rng_state())


def test_seeds_decide(replica: VllmReplica) -> None:
    def sample(seeds):
        requests = [replace(REQUEST, seed=(seed,), num_samples=3) for seed in seeds]
        groups = replica.generate(requests, PARAMS)
        return [[tokens.tolist() for tokens, _ in group] for group in groups]

    assert sample([7, 8]) == sample([7, 8])
    assert sample([7, 8])[0] != sample([9, 8])[0] and sample([7, 8])[1] == sample([9, 8])[1]


def test_prompts_that_do_not_fit_a_step_together(folder: Path, replica: VllmReplica) -> None:
    """A prompt computed in parts would crash vLLM on CPU, whose seeded generators can't take a draw back."""
    VllmEngine(replica, 1).load_weights(weights_of(make_model(folder, 1)), 10)
    prompts = [np.arange(2, 2 + length, dtype=np.int32) for length in (20, 7, 19, 13)]
    requests = [Request(prompt, (place,)) for place, prompt in enumerate(prompts)]
    together = replica.generate(requests, PARAMS)
    alone = [sampled for request in requests for sampled in replica.generate([request], PARAMS)]
    for [(tokens, log_probs)], [(expected, expected_log_probs)] in zip(together, alone, strict=True):
        assert tokens.tolist() == expected.tolist()
        np.testing.assert_allclose(log_probs, expected_log_probs, atol=1e-5)


def test_greedy_samples_are_copies(replica: VllmReplica) -> None:
    [group] = replica.generate([replace(REQUEST, num_samples=3)], SamplingParams(5, temperature=0.0))
    assert len(group) == 3 and len({tuple(tokens) for tokens, _ in group}) == 1


def test_a_skipped_push(folder: Path, replica: VllmReplica) -> None:
    VllmEngine(replica, 1).load_weights(weights_of(make_model(folder, 1)), 0)
    with pytest.raises(TrainingError, match="vLLM replica 0 samples from other weights than the trainer's"):
        probe(replica).check(log_probs_by(make_model(folder, 2)))


class Changed:
    """A replica whose weights are changed on their way."""

    def __init__(self, replica: VllmReplica) -> None:
        self.replica = replica

    def __getattr__(self, name: str):
        return getattr(self.replica, name)


def test_a_tensor_that_is_lost(folder: Path, replica: VllmReplica) -> None:
    class Lossy(Changed):
        def load(self, weights, version):
            return replica.load((pair for pair in weights if "layers.1.mlp" not in pair[0]), version)

    with pytest.raises(TrainingError, match=r"rank 0: it has tensors \d+ and not \d+"):
        VllmEngine(Lossy(replica), 1).load_weights(weights_of(make_model(folder, 1)), 0)


def test_a_tensor_that_the_model_ignores(folder: Path, replica: VllmReplica) -> None:
    """vLLM passes over a bias of a module without one, in silence."""

    def weights(name: str):
        yield from weights_of(make_model(folder, 1))
        yield name, torch.zeros(128)

    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    with pytest.raises(TrainingError, match=rf"rank 0: its model did not take {name}$"):
        VllmEngine(replica, 1).load_weights(weights(name), 0)


def test_a_bit_that_flips(folder: Path, replica: VllmReplica) -> None:
    class Noisy(Changed):
        def load(self, weights, version):
            def flipped():
                for name, tensor in weights:
                    if name == "model.norm.weight":
                        tensor = tensor.clone()
                        tensor.view(torch.int32)[3] ^= 1
                    yield name, tensor

            return replica.load(flipped(), version)

    with pytest.raises(TrainingError, match="checksum"):
        VllmEngine(Noisy(replica), 1).load_weights(weights_of(make_model(folder, 1)), 0)


def test_a_head_that_stays_stale(folder: Path, replica: VllmReplica, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own reload leaves a tied head as it was on CPU, in silence: the probe sees it."""
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

    from sppo_megatron.engines.vllm import worker as vllm_worker

    engine = VllmEngine(replica, 1)
    engine.load_weights(weights_of(make_model(folder, 1)), 0)
    monkeypatch.setattr(vllm_worker, "end_loading", finalize_layerwise_reload)
    engine.load_weights(weights_of(make_model(folder, 2)), 1)
    with pytest.raises(TrainingError, match="other weights than the trainer's"):
        probe(replica).check(log_probs_by(make_model(folder, 2)))


def test_weights_do_not_go_back(folder: Path, replica: VllmReplica) -> None:
    engine = VllmEngine(replica, 1)
    engine.load_weights(weights_of(make_model(folder, 1)), 5)
    with pytest.raises(ValueError, match="version 4 are older than version 5"):
        engine.load_weights(weights_of(make_model(folder, 1)), 4)


def test_without_vllm_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kind, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'rollout.engine=vllm needs vllm: pip install "sppo-megatron\[vllm\]"'):
        ENGINES["vllm"].check_installed()


def test_told_to_stop_while_it_samples(folder: Path, replica: VllmReplica, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its requests stay in the engine: nothing is sampled after it."""
    engine = VllmEngine(replica, 1)
    engine.load_weights(weights_of(make_model(folder, 1)), 20)
    before = replica._llm.llm_engine.step
    steps = []

    def step():
        steps.append(None)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return before()

    monkeypatch.setattr(replica._llm.llm_engine, "step", step)
    with contextlib.closing(StopSignals()), pytest.raises(Interrupted):
        engine.generate([replace(REQUEST, num_samples=64)], replace(PARAMS, max_new_tokens=28))
    assert len(steps) < 3 + 2 * STEPS_BETWEEN_CHECKS


def test_a_load_that_fails_half_way(folder: Path, replica: VllmReplica) -> None:
    """The stream is taken to its end all the same: the other ranks wait in its collectives.

    The last test here: vLLM can't load again after a load that broke off, and the run ends.
    """
    taken = []

    def stream(model):
        for name, tensor in weights_of(model):
            taken.append(name)
            yield name, tensor[..., :-1] if name == "model.layers.0.mlp.down_proj.weight" else tensor

    model = make_model(folder, 1)
    engine = VllmEngine(replica, 1)
    with pytest.raises(TrainingError, match="rank 0"):
        engine.load_weights(stream(model), 0)
    assert taken == [name for name, _ in weights_of(model)]
    assert engine.weight_version == -1
