"""The comparison of log-probs with FP8 and without: on CPU both are the same pass."""

from __future__ import annotations

import numpy as np
import pytest

from sppo_megatron.batch.sequences import make_sequences
from sppo_megatron.config import Config, PrecisionConfig
from sppo_megatron.errors import TrainingError
from sppo_megatron.policy.model.build import unwrap
from sppo_megatron.policy.step.fp8_probe import Fp8Probe, build_fp8_probe, log_prob_differences
from tests.tiny_policy import random_batch, tiny_policy


@pytest.fixture(scope="module")
def policy():
    run = Config()
    run.precision.dtype = "fp32"
    with tiny_policy(run) as policy:
        yield policy


@pytest.fixture(scope="module")
def sequences():
    return random_batch(6).sequences


def precision(**values) -> PrecisionConfig:
    return PrecisionConfig(**({"fp8": "hybrid", "fp8_probe_samples": 4} | values))


def test_without_fp8_nothing_differs(policy, sequences):
    log_probs, _ = policy.compute_log_probs(sequences)
    figures = Fp8Probe(policy, precision())(sequences, log_probs)
    assert len(figures) == 5
    assert set(figures.values()) == {0.0}


def test_the_comparison_is_with_a_pass_without_fp8(policy, sequences):
    log_probs, _ = policy.compute_log_probs(sequences)
    seen = []
    hook = unwrap(policy.chunks[0]).decoder.register_forward_pre_hook(lambda block, _: seen.append(block.config.fp8))
    policy.config.fp8 = "hybrid"
    try:
        Fp8Probe(policy, precision())(sequences, log_probs)
        assert seen == [None] * 4 and policy.config.fp8 == "hybrid"
    finally:
        policy.config.fp8 = None
        hook.remove()


def test_a_bias_is_found_in_the_probed_samples_alone(policy, sequences):
    log_probs, _ = policy.compute_log_probs(sequences)
    biased = log_probs + np.float32(0.25)
    figures = Fp8Probe(policy, precision())(sequences, biased)
    assert figures["fp8_log_prob_diff"] == pytest.approx(0.25, abs=1e-5)
    assert figures["fp8_log_ratio_diff_mean"] == pytest.approx(0.25 * np.mean(sequences.lengths[:4]), abs=1e-4)
    assert figures["fp8_log_ratio_diff_max"] == pytest.approx(0.25 * max(sequences.lengths[:4]), abs=1e-4)
    first = sequences.offsets[4]
    late = np.append(log_probs[:first], biased[first:])
    assert set(Fp8Probe(policy, precision())(sequences, late).values()) == {0.0}


def test_the_gate_stops_the_run(policy, sequences):
    log_probs, _ = policy.compute_log_probs(sequences)
    biased = log_probs - np.float32(0.25)
    mean = 0.25 * np.mean(sequences.lengths[:4])
    Fp8Probe(policy, precision(fp8_max_log_ratio_diff=mean * 1.01))(sequences, biased)
    with pytest.raises(TrainingError, match=r"precision\.fp8_max_log_ratio_diff=.*precision=fp8_blockwise"):
        Fp8Probe(policy, precision(fp8_max_log_ratio_diff=mean * 0.99))(sequences, biased)


def test_the_gate_stops_at_what_is_no_number(policy, sequences):
    log_probs, _ = policy.compute_log_probs(sequences)
    log_probs[0] = np.nan
    with pytest.raises(TrainingError, match="nan nats"):
        Fp8Probe(policy, precision(fp8_max_log_ratio_diff=1.0))(sequences, log_probs)


def test_responses_without_tokens_have_no_figures(policy):
    empty = make_sequences([np.ones(3, np.int32)], [np.zeros(0, np.int32)])
    assert Fp8Probe(policy, precision())(empty, np.zeros(0, np.float32)) == {}
    assert Fp8Probe(policy, precision())(make_sequences([], []), np.zeros(0, np.float32)) == {}


@pytest.mark.parametrize(
    ("values", "is_built"), [({}, True), ({"fp8": None}, False), ({"fp8_probe_samples": 0}, False)], ids=str
)
def test_a_probe_is_built_where_there_is_something_to_compare(policy, values, is_built):
    assert (build_fp8_probe(policy, precision(**values)) is not None) == is_built


def test_differences_by_hand():
    fp8 = np.float32([-1.0, -2.0, -3.0])
    reference = np.float32([-1.5, -1.0, -3.25])
    sequences = make_sequences([np.ones(1)] * 3, [np.ones(2), np.ones(0), np.ones(1)])
    assert log_prob_differences(sequences, fp8, reference) == pytest.approx(
        {
            "fp8_log_prob_diff": (0.5 - 1.0 + 0.25) / 3,
            "fp8_log_prob_diff_mean": (0.5 + 1.0 + 0.25) / 3,
            "fp8_log_prob_diff_max": 1.0,
            "fp8_log_ratio_diff_mean": (0.5 + 0.25) / 2,
            "fp8_log_ratio_diff_max": 0.5,
        }
    )
