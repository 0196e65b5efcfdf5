"""GRPO, GVPO and MNPO against their papers' formulas, written out in plain float64 code: values and gradients."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sppo_megatron.objective.registry import build_objective

REWARDS = [[1.0, 0.0, 0.25, 0.5], [0.2, 0.9, 0.4], [0.5, 0.5]]
LENGTHS = [[3, 1, 4, 2], [2, 5, 0], [1, 3]]
GROUPS = [place for place, rewards in enumerate(REWARDS) for _ in rewards]
TOKENS = sum(map(sum, LENGTHS))


def micro_batch(objective, seed: int = 0):
    """(log π_θ of every token, the batch): weights as importance weights would be, log-ratios to both sides of 1."""
    rng = np.random.default_rng(seed)
    lengths = torch.tensor([length for group in LENGTHS for length in group], dtype=torch.float64)
    ids = torch.repeat_interleave(torch.arange(len(lengths)), lengths.long())
    old, new, ref = torch.from_numpy(-rng.random((3, TOKENS)) * 2)
    rewards = torch.tensor([reward for group in REWARDS for reward in group], dtype=torch.float64)
    columns = objective.columns(rewards, torch.tensor(GROUPS))
    columns["weight"] = torch.from_numpy(rng.random(len(lengths)) + 0.5)
    columns["ref_log_ratio"] = torch.zeros(len(lengths)).double().index_add(0, ids, old - ref)
    batch = SimpleNamespace(
        columns=columns,
        lengths=lengths,
        units=torch.tensor(GROUPS),
        sequence_ids=ids,
        old_log_probs=old,
        ref_log_probs=ref,
        response_lengths=lengths.long().tolist(),
    )
    return new.requires_grad_(), batch


def responses(new, batch):
    """(group, reward, importance weight, log π_θ, log π_t, log π_ref of its tokens) of each response."""
    parts = [x.split(batch.response_lengths) for x in (new, batch.old_log_probs, batch.ref_log_probs)]
    rewards = [reward for group in REWARDS for reward in group]
    return list(zip(GROUPS, rewards, batch.columns["weight"].tolist(), *parts, strict=True))


def check(objective, expected_mean, mean_of):
    """Value and gradient of the objective's mean over the mini-batch against the definition's."""
    new, batch = micro_batch(objective)
    of_tokens = new - batch.old_log_probs
    sums = torch.zeros(len(GROUPS)).double().index_add(0, batch.sequence_ids, of_tokens)
    loss = objective.loss(of_tokens if objective.is_token_level else sums, batch)
    mean = loss.loss_sum / mean_of(batch)
    expected = expected_mean(responses(new, batch))
    assert mean.item() == pytest.approx(expected.item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(mean, new)
    (expected_gradient,) = torch.autograd.grad(expected, new)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-14)
    assert gradient.abs().max() > 1e-3
    return loss


@pytest.mark.parametrize("kl_coef", [0.0, 0.04])
@pytest.mark.parametrize("token_agg", ["sequence-mean", "token-mean"])
@pytest.mark.parametrize("divide_by_std", [True, False])
@pytest.mark.parametrize("clip", [(0.2, 0.2), (0.2, 0.28), (0.01, 5.0)])
def test_grpo(clip, divide_by_std, token_agg, kl_coef):
    low, high = clip
    keys = {"clip_low": low, "clip_high": high, "divide_by_std": divide_by_std, "token_agg": token_agg}
    objective = build_objective({"name": "grpo", "kl_coef": kl_coef, **keys})
    clipped = 0

    def definition(rows):
        nonlocal clipped
        total = 0.0
        for group, reward, weight, new, old, ref in rows:
            of_group = np.array(REWARDS[group])
            advantage = reward - of_group.mean()
            if divide_by_std:
                advantage /= of_group.std(ddof=1) + 1e-6
            for theta, t, start in zip(new, old, ref, strict=True):
                ratio = torch.exp(theta - t)
                bounded = min(max(ratio, 1 - low), 1 + high) if not 1 - low <= ratio <= 1 + high else ratio
                clipped += float(bounded * advantage < ratio * advantage)
                surrogate = min(ratio * advantage, bounded * advantage)
                kl = torch.exp(start - theta) - (start - theta) - 1
                share = weight / len(new) if token_agg == "sequence-mean" else weight
                total = total + share * (kl_coef * kl - surrogate)
        return total / (8 if token_agg == "sequence-mean" else TOKENS)  # 8 of the 9 responses have tokens

    loss = check(objective, definition, lambda batch: objective.count(batch.lengths.long().numpy()[:, None]))
    assert loss.metrics["clipped_sum"] == clipped > 0
    assert ("policy_kl_sum" in loss.metrics) == (kl_coef > 0) == objective.needs.reference


def test_grpo_of_equal_groups_is_the_papers_and_has_its_gradient():
    """Equation 3 for a batch of questions with G answers each; where π_θ is π_t the appendix gives the gradient's
    coefficient, [A + β(π_ref/π_θ − 1)]/(G·|o|) of each token, and one question's expectation is the mean of them."""
    beta, rewards, lengths = 0.04, np.array([[1.0, 0.0, 0.25], [0.2, 0.9, 0.4]]), [[3, 1, 4], [2, 5, 1]]
    objective = build_objective({"name": "grpo", "kl_coef": beta})
    flat = torch.tensor([length for group in lengths for length in group])
    ids = torch.repeat_interleave(torch.arange(6), flat)
    old, ref = torch.from_numpy(-np.random.default_rng(3).random((2, len(ids))))
    columns = objective.columns(torch.from_numpy(rewards).flatten(), torch.tensor([0, 0, 0, 1, 1, 1]))
    batch = SimpleNamespace(
        columns=columns | {"weight": torch.ones(6).double()},
        lengths=flat.double(),
        sequence_ids=ids,
        old_log_probs=old,
        ref_log_probs=ref,
    )
    new = old.clone().requires_grad_()
    loss = objective.loss(new - old, batch).loss_sum / objective.count(flat.numpy()[:, None])
    (gradient,) = torch.autograd.grad(loss, new)
    advantages = (rewards - rewards.mean(axis=1, keepdims=True)) / (rewards.std(axis=1, ddof=1, keepdims=True) + 1e-6)
    expected_loss, expected, token = 0.0, [], 0
    for advantage_of_group, lengths_of_group in zip(advantages, lengths, strict=True):
        for advantage, length in zip(advantage_of_group, lengths_of_group, strict=True):
            for _ in range(length):
                ratio = math.exp(ref[token] - old[token])
                share = 1 / (2 * 3 * length)
                expected_loss -= share * (advantage - beta * (ratio - math.log(ratio) - 1))
                expected.append(-share * (advantage + beta * (ratio - 1)))
                token += 1
    assert loss.item() == pytest.approx(expected_loss, rel=1e-12)
    torch.testing.assert_close(gradient, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-14)


def test_grpo_of_a_group_without_a_spread_is_nothing():
    rewards = torch.tensor([0.3, 0.3, 0.7]).double()
    advantage = build_objective({"name": "grpo"}).columns(rewards, torch.tensor([4, 4, 9]))["target"]
    assert advantage.tolist() == [0, 0, 0]


def test_a_broken_ratio_is_no_nan():
    objective = build_objective({"name": "grpo", "kl_coef": 0.1})
    _, batch = micro_batch(objective)
    loss = objective.loss(torch.full((TOKENS,), 800.0), batch).loss_sum
    assert torch.isfinite(loss)


@pytest.mark.parametrize("token_agg", ["sequence-mean", "token-mean"])
def test_sft(token_agg):
    """Weights stand by their sequence; an empty response is not there."""

    def definition(rows):
        of_responses = [-weight * new for _, _, weight, new, *_ in rows if len(new)]
        return (
            torch.cat(of_responses).mean()
            if token_agg == "token-mean"
            else sum(map(torch.mean, of_responses)) / len(of_responses)
        )

    objective = build_objective({"name": "sft", "token_agg": token_agg})
    lengths = np.array([[length] for group in LENGTHS for length in group])
    check(objective, definition, lambda batch: objective.count(lengths))


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_kto(beta):
    """The value of a response above a half is σ(β log-ratio), of another σ(−β log-ratio), and the loss 1 less that."""

    def definition(rows):
        losses = []
        for _, reward, weight, new, old, _ in (row for row in rows if len(row[3])):
            ratio = (new - old).sum()
            value = 1 / (1 + torch.exp(-beta * ratio if reward > 0.5 else beta * ratio))
            losses.append(weight * (1 - value))
        return sum(losses) / len(losses)

    objective = build_objective({"name": "kto", "beta": beta})
    lengths = np.array([[length] for group in LENGTHS for length in group])
    check(objective, definition, lambda batch: objective.count(lengths))


@pytest.mark.parametrize("eta", [0.5, 10.0])
def test_gvpo(eta):
    """The paper's β is 1/η. A group's empty response is not there."""
    beta = 1 / eta

    def definition(rows):
        losses = []
        for group, rewards in enumerate(REWARDS):
            own = [row for row in rows if row[0] == group and len(row[3])]
            implicit = [beta * (new - old).sum() for _, _, _, new, old, _ in own]
            centre = sum(implicit) / len(implicit)
            squares = [
                weight * ((r_theta - centre) - (reward - np.mean(rewards))) ** 2
                for r_theta, (_, reward, weight, *_) in zip(implicit, own, strict=True)
            ]
            losses.append(sum(squares) / (2 * (len(own) - 1)))
        return sum(losses) / len(losses)

    objective = build_objective({"name": "gvpo", "eta": eta})
    lengths = np.array([[*group, *[-1] * (4 - len(group))] for group in LENGTHS])
    check(objective, definition, lambda batch: objective.count(lengths))


def test_gvpo_has_the_papers_gradient():
    """−Σ [(r − r̄) − β(s − s̄)] ∇log π /(K − 1): the mean's own gradient falls out, its weights add up to 0."""
    objective = build_objective({"name": "gvpo", "eta": 4.0})
    s = torch.tensor([0.3, -0.2, 0.6, 0.0], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor(REWARDS[0], dtype=torch.float64)
    columns = objective.columns(rewards, torch.zeros(4, dtype=torch.int64)) | {"weight": torch.ones(4).double()}
    batch = SimpleNamespace(columns=columns, lengths=torch.ones(4), units=torch.zeros(4, dtype=torch.int64))
    (gradient,) = torch.autograd.grad(objective.loss(s, batch).loss_sum, s)
    weights = (rewards - rewards.mean()) - (s - s.mean()) / 4
    torch.testing.assert_close(gradient, -weights.detach() / 4 / 3)


def test_gvpo_is_0_at_the_optimal_policy():
    """π ∝ π_t exp(r/β) has s = r/β − log Z."""
    objective = build_objective({"name": "gvpo", "eta": 4.0})
    rewards = torch.tensor([r for group in REWARDS for r in group], dtype=torch.float64)
    _, batch = micro_batch(objective)
    batch.lengths = batch.lengths.clamp(min=1)
    normaliser = torch.tensor([0.7, -3.0, 12.0], dtype=torch.float64)[torch.tensor(GROUPS)]
    assert objective.loss(4.0 * rewards - normaliser, batch).loss_sum.item() == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("eta", [0.4, 2.0])
def test_mnpo(eta):
    """Three opponents: the start with 0.3, an earlier policy with 0.5, π_t with what is left."""
    objective = build_objective(
        {"name": "mnpo", "eta": eta, "ref_coef": 0.3, "opponents": [{"path": "earlier", "weight": 0.5}]}
    )
    assert objective.references == {"": pytest.approx(0.375), "earlier": pytest.approx(0.625)}
    rng = np.random.default_rng(3)
    theta, t, start, earlier = torch.from_numpy(-rng.random((4, 6)) * 9)
    theta.requires_grad_()
    losses = []
    for w in (0, 4):  # the second pair's loser is empty
        terms = [theta, -0.3 * start, -0.5 * earlier, -0.2 * t]
        h = sum(x[w] - x[w + 1] for x in terms)
        losses.append((1.5 if w == 4 else 1.0) * (h - 1 / (2 * eta)) ** 2)
    blend = 0.375 * start + 0.625 * earlier
    weight = torch.tensor([1, 1, 1, 1, 0.5, 3]).double()
    batch = SimpleNamespace(
        columns={"ref_log_ratio": t - blend, "weight": weight}, lengths=torch.tensor([3, 1, 2, 0, 1, 1.0])
    )
    sums = objective.loss(theta - t, batch)
    assert sums.loss_sum.item() == pytest.approx(sum(losses).item(), rel=1e-12)
    assert sums.weight_sum == 2 == objective.count(np.array([[3, 1], [2, 0], [1, 1]]))
    (gradient,) = torch.autograd.grad(sums.loss_sum, theta, retain_graph=True)
    torch.testing.assert_close(gradient, torch.autograd.grad(sum(losses), theta)[0])


def test_mnpo_without_opponents_is_inpo():
    s, u = torch.linspace(-1, 2, 8).square(), torch.linspace(3, -2, 8)
    columns = {"ref_log_ratio": u, "weight": torch.ones(8)}
    columns |= {name: torch.zeros(8) for name in ("win_rate", "reward", "preference")}
    batch = SimpleNamespace(columns=columns, lengths=torch.ones(8))
    keys = {"eta": 0.4, "ref_coef": 0.3}
    inpo = build_objective({"pairwise": "inpo", **keys}).loss(s, batch)
    mnpo = build_objective({"name": "mnpo", **keys}).loss(s, batch)
    torch.testing.assert_close(mnpo.loss_sum, inpo.loss_sum)
    assert {name: float(mnpo.metrics[name]) for name in mnpo.metrics} == pytest.approx(
        {name: float(inpo.metrics[name]) for name in mnpo.metrics}
    )
    assert build_objective({"name": "mnpo"}).needs.reference is False and math.isfinite(float(mnpo.loss_sum))
