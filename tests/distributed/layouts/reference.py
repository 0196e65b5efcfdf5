"""The update from its definition: plain Hugging Face and PyTorch, one sequence at a time, nothing of the package.

Follows a rollout file step by step as a replay with train.shuffle=false does, and gives every step's loss and gradient
norm and the final weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from tests.distributed.layouts import models


@dataclass(frozen=True)
class Settings:
    """What the runs under test are configured with."""

    iterations: int = 2
    groups_per_iteration: int = 3
    minibatch_size: int = 5
    epochs: int = 1
    eta: float = 2.0
    baseline: str = "constant"
    length_weight: bool = False
    kimi_scale: bool = False
    name: str = "sppo"
    divide_by_std: bool = True
    clip: float = 0.2
    token_mean: bool = False
    kl_coef: float = 0.0
    opponent: tuple[str, float] | None = None  # a model beside the trained one, and its share
    pairwise: str | None = None
    beta: float | None = None
    ref_coef: float = 0.0
    win_rate: bool = False
    temperature: float = 0.7
    lr: float = 1e-3
    lr_warmup_steps: int = 0
    lr_decay: bool = False
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    adam_eps: float = 1e-5
    clip_grad: float = 0.5
    aux_loss_coeff: float = 0.0  # of a mixture of experts
    expert_bias_rate: float = 0.0
    aux_of_each: bool = False  # each sequence is a micro-batch, on two data-parallel ranks; else all are one


@dataclass
class Result:
    losses: list[float]
    grad_norms: list[float]
    aux_losses: list[float]  # means over layers and micro-batches
    start: dict[str, torch.Tensor]
    final: dict[str, torch.Tensor]


def train(model_folder: Path, rollout_file: Path, settings: Settings) -> Result:
    """Trains in fp32 with sums of log-probs in float64."""
    model = models.load_model(model_folder).eval()
    ref_model = models.load_model(model_folder).eval()
    opponent = None
    if settings.opponent:
        folder = model_folder.parent / settings.opponent[0]
        opponent = models.load_model(folder).eval()
    model.get_input_embeddings().padding_idx = None  # else that token, which may end turns, gets no gradient
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    named = list(model.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for name, p in named if _decays(name, p)], "weight_decay": settings.weight_decay},
            {"params": [p for name, p in named if not _decays(name, p)], "weight_decay": 0.0},
        ],
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.adam_eps,
    )
    groups = [json.loads(line) for line in rollout_file.read_text().splitlines()]
    losses, norms, aux_losses = [], [], []
    total_steps = (
        sum(
            -(
                -sum(len(group["responses"]) for group in groups[i : i + settings.groups_per_iteration])
                // settings.minibatch_size
            )
            for i in range(0, settings.iterations * settings.groups_per_iteration, settings.groups_per_iteration)
        )
        * settings.epochs
    )
    for iteration in range(settings.iterations):
        first = iteration * settings.groups_per_iteration
        of_iteration = groups[first : first + settings.groups_per_iteration]
        of_pairs = settings.pairwise or settings.name == "mnpo"
        sequences = list((_pair_sequences if of_pairs else _SEQUENCES[settings.name])(of_iteration, settings))
        old, ref = _frozen(model, sequences, settings), _frozen(ref_model, sequences, settings)
        other = _frozen(opponent, sequences, settings) if opponent is not None else None
        for _ in range(settings.epochs):
            for begin in range(0, len(sequences), settings.minibatch_size):
                chosen = range(begin, min(begin + settings.minibatch_size, len(sequences)))
                if of_pairs:
                    loss = _pair_loss(model, sequences, old, ref, chosen, settings, other)
                elif settings.name == "grpo":
                    loss = _grpo_loss(model, sequences, old, ref, chosen, settings)
                elif settings.name == "sft":
                    loss = _sft_loss(model, sequences, chosen, settings)
                elif settings.name == "gvpo":
                    loss = _gvpo_loss(model, sequences, old, chosen, settings)
                else:
                    loss = _loss(model, sequences, old, chosen, settings)
                for parameters in optimizer.param_groups:
                    parameters["lr"] = _learning_rate(len(losses), total_steps, settings)
                optimizer.zero_grad()
                loss.backward()
                if settings.aux_loss_coeff:
                    fed = [(prompt + response)[:-1] for prompt, response, _ in sequences[begin : chosen.stop]]
                    micro_batches = [[ids] for ids in fed if ids] if settings.aux_of_each else [fed]
                    count = -(-len(fed) // 2) * 2 if settings.aux_of_each else 1  # the ranks make equally many
                    of_layers = sum(_imbalance(model, batch) for batch in micro_batches) / count
                    (settings.aux_loss_coeff * of_layers.sum()).backward()
                    aux_losses.append(of_layers.mean().item())
                if settings.expert_bias_rate:
                    fed = [(prompt + response)[:-1] for prompt, response, _ in sequences[begin : chosen.stop]]
                    _balance(model, [ids for ids in fed if ids], settings.expert_bias_rate)
                norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad)))
                optimizer.step()
                losses.append(loss.item())
    return Result(losses, norms, aux_losses, start, model.state_dict())


def _learning_rate(step: int, total_steps: int, settings: Settings) -> float:
    """Of optimizer step `step`, from 0: linear warm-up from 0, then constant or linearly to a tenth at total_steps."""
    if step < settings.lr_warmup_steps:
        return settings.lr * step / settings.lr_warmup_steps
    if not settings.lr_decay:
        return settings.lr
    left = (total_steps - step) / (total_steps - settings.lr_warmup_steps)
    return settings.lr * (0.1 + 0.9 * left)


def _sequences(groups: list[dict], settings: Settings) -> Iterator[tuple[list[int], list[int], float]]:
    """(prompt, response, δ) in file order."""
    for group in groups:
        rewards = np.array([response["reward"] for response in group["responses"]], dtype=np.float64)
        eta = settings.eta
        baseline = {
            "constant": 0.5,
            "mean": rewards.mean(),
            "log_partition": np.log(np.mean(np.exp(eta * rewards))) / eta,
        }[settings.baseline]
        for response, reward in zip(group["responses"], rewards, strict=True):
            yield group["prompt_token_ids"], response["token_ids"], eta * (reward - baseline)


def _pair_sequences(groups: list[dict], settings: Settings) -> Iterator[tuple[list[int], list[int], dict]]:
    """(prompt, response, what the loss needs of it), winner and loser in turn."""
    for group in groups:
        responses, preference = group["responses"], np.array(group["preference"])
        if settings.pairwise == "spin":
            for response in responses:
                yield group["prompt_token_ids"], group["human_token_ids"], {}
                yield group["prompt_token_ids"], response["token_ids"], {}
            continue
        rewards, win_rates = [response["reward"] for response in responses], preference.mean(axis=1)
        values = win_rates if settings.win_rate else rewards
        winner, loser = int(np.argmax(values)), int(np.argmin(values))
        for i in (winner, loser):
            terms = {"p": preference[winner, loser], "win_rate": win_rates[i], "reward": rewards[i]}
            yield group["prompt_token_ids"], responses[i]["token_ids"], terms


def _reward_sequences(groups: list[dict], settings: Settings) -> Iterator[tuple[list[int], list[int], tuple]]:
    """(prompt, response, (number of its group, reward less the group's mean, divided or not)) in file order."""
    for number, group in enumerate(groups):
        rewards = np.array([response["reward"] for response in group["responses"]], dtype=np.float64)
        advantages = rewards - rewards.mean()
        if settings.name == "grpo" and settings.divide_by_std:
            advantages = advantages / (rewards.std(ddof=1) + 1e-6)
        for response, advantage in zip(group["responses"], advantages, strict=True):
            yield group["prompt_token_ids"], response["token_ids"], (number, float(advantage))


_SEQUENCES = {"sppo": _sequences, **dict.fromkeys(("grpo", "gvpo", "sft"), _reward_sequences)}


def _grpo_loss(model, sequences, old, ref, chosen, settings: Settings) -> torch.Tensor:
    """The mean over responses of the mean over their tokens, or over all tokens; one token at a time."""
    of_responses, low, high = [], 1 - settings.clip, 1 + settings.clip
    for i in chosen:
        prompt, response, (_, advantage) = sequences[i]
        if not response:
            continue
        new, losses = _token_log_probs(model, prompt, response, settings.temperature), []
        for t in range(len(response)):
            ratio = torch.exp(new[t] - old[i][t])
            surrogate = torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
            kl = torch.exp(ref[i][t] - new[t]) - (ref[i][t] - new[t]) - 1
            losses.append(settings.kl_coef * kl - surrogate)
        of_responses.append(torch.stack(losses))
    if settings.token_mean:
        return torch.cat(of_responses).mean()
    return torch.stack([losses.mean() for losses in of_responses]).mean()


def _sft_loss(model, sequences, chosen, settings: Settings) -> torch.Tensor:
    """The mean negative log-prob: of all tokens, or of responses' means."""
    responses = [sequences[i][:2] for i in chosen if sequences[i][1]]
    of_responses = [-_token_log_probs(model, *response, settings.temperature) for response in responses]
    if settings.token_mean:
        return torch.cat(of_responses).mean()
    return torch.stack([losses.mean() for losses in of_responses]).mean()


def _gvpo_loss(model, sequences, old, chosen, settings: Settings) -> torch.Tensor:
    """The mean over groups of the squared differences of centred implicit rewards and rewards, over 2(K − 1)."""
    losses, beta = [], 1 / settings.eta
    for group in sorted({sequences[i][2][0] for i in chosen}):
        own = [i for i in chosen if sequences[i][2][0] == group and sequences[i][1]]
        implicit = [beta * (_log_prob(model, *sequences[i][:2], settings.temperature) - old[i]) for i in own]
        centre = sum(implicit) / len(own)
        squares = [(r - centre - sequences[i][2][1]) ** 2 for r, i in zip(implicit, own, strict=True)]
        losses.append(sum(squares) / (2 * (len(own) - 1)))
    return sum(losses) / len(losses)


def _pair_loss(model, sequences, old, ref, chosen, settings: Settings, other=None) -> torch.Tensor:
    """The mean over pairs whose responses both have tokens; formulas as in the papers."""
    losses = []
    for i in chosen[::2]:
        (prompt, winner, of_w), (_, loser, of_l) = sequences[i], sequences[i + 1]
        if not winner or not loser:
            continue
        s_w = _log_prob(model, prompt, winner, settings.temperature) - old[i]
        s_l = _log_prob(model, prompt, loser, settings.temperature) - old[i + 1]
        eta, beta = settings.eta, settings.beta or math.nan
        match settings.pairwise or settings.name:
            case "sppo":
                parts = [s_w - eta * (of_w["win_rate"] - 0.5), s_l - eta * (of_l["win_rate"] - 0.5)]
                losses.append((parts[0] ** 2 + parts[1] ** 2) / 2)
            case "sppo_single":
                target = eta * (of_w["p"] - 0.5)
                losses.append(((s_w - target) ** 2 + (s_l + target) ** 2) / 2)
            case "sppo_hard":
                losses.append((s_w - eta / 2) ** 2 + (s_l + eta / 2) ** 2)
            case "dpo" | "spin":
                losses.append(torch.log(1 + torch.exp(-beta * (s_w - s_l))))
            case "ipo":
                losses.append((s_w - s_l - 1 / (2 * beta)) ** 2)
            case "rebel":
                losses.append(((s_w - s_l) / eta - (of_w["reward"] - of_l["reward"])) ** 2)
            case "inpo":
                pull = (old[i] - ref[i]) - (old[i + 1] - ref[i + 1])
                losses.append((s_w - s_l + settings.ref_coef * pull - 1 / (2 * eta)) ** 2)
            case "mnpo":
                share = settings.opponent[1]
                h = (1 - settings.ref_coef - share) * (s_w - s_l)
                for weight, opponent in ((settings.ref_coef, ref), (share, other)):
                    h = h + weight * ((s_w + old[i] - opponent[i]) - (s_l + old[i + 1] - opponent[i + 1]))
                losses.append((h - 1 / (2 * eta)) ** 2)
    return sum(losses) / len(losses)


def _decays(name: str, parameter: torch.nn.Parameter) -> bool:
    """Matrices; biases of all experts lie in one tensor, but are vectors."""
    return parameter.dim() > 1 and not name.endswith("bias")


@torch.no_grad()
def _frozen(model: torch.nn.Module, sequences: list, settings: Settings) -> list[torch.Tensor]:
    """Log-probs of each response, of each token of it for GRPO."""
    log_probs = _token_log_probs if settings.name == "grpo" else _log_prob
    return [log_probs(model, prompt, response, settings.temperature) for prompt, response, _ in sequences]


def _log_prob(model: torch.nn.Module, prompt: list[int], response: list[int], temperature: float) -> torch.Tensor:
    return _token_log_probs(model, prompt, response, temperature).sum()


def _token_log_probs(
    model: torch.nn.Module, prompt: list[int], response: list[int], temperature: float
) -> torch.Tensor:
    logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].double() / temperature
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(response, dtype=torch.int64)[:, None])[:, 0]


def _loss(model, sequences, old, chosen, settings: Settings) -> torch.Tensor:
    total, count = torch.zeros((), dtype=torch.float64), 0
    for i in chosen:
        prompt, response, target = sequences[i]
        if not response:
            continue
        squared = (_log_prob(model, prompt, response, settings.temperature) - old[i] - target) ** 2
        total = total + squared / (len(response) if settings.length_weight else 1)
        count += 1
    return total / count / (2 * settings.eta if settings.kimi_scale else 1)


@torch.no_grad()
def _balance(model: torch.nn.Module, sequences: list[list[int]], rate: float) -> None:
    """DeepSeek-V3, section 2.1.2: the bias of an expert with less than its share of tokens grows, others shrink."""
    routers = [module for module in model.modules() if hasattr(module, "e_score_correction_bias")]
    counts = [torch.zeros_like(router.e_score_correction_bias) for router in routers]

    def count(number: int):
        def hook(module, arguments, output) -> None:
            for expert in output[2].flatten().tolist():
                counts[number][expert] += 1

        return hook

    hooks = [router.register_forward_hook(count(number)) for number, router in enumerate(routers)]
    for ids in sequences:
        model(torch.tensor([ids]))
    for hook, router, found in zip(hooks, routers, counts, strict=True):
        hook.remove()
        router.e_score_correction_bias += rate * torch.sign(found.mean() - found)


def _imbalance(model: torch.nn.Module, sequences: list[list[int]]) -> torch.Tensor:
    """Of each layer E Σ_e f_e P_e: the share of choices of expert e and its mean probability over all tokens.

    In transformers' definition the f_e of a layer sum to the number of choices of a token.
    """
    of_sequences = [model(torch.tensor([ids]), output_router_logits=True).router_logits for ids in sequences if ids]
    choices = model.config.num_experts_per_tok
    layers = [torch.cat(of_layer) for of_layer in zip(*of_sequences, strict=True)]
    return torch.stack([load_balancing_loss_func((x,), x.shape[1], choices) / choices for x in layers])
