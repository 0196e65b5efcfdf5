"""Generation with Megatron-Core's key-value cache, under every layout that trains.

Each rank of the data- and context-parallel group is a replica with a share of the prompts. A token costs one pass
through the pipeline, stage by stage; the last stage draws it and tells the others. Replicas go their own pace, except
where they hold parts of the experts for each other: a replica that is done then keeps making passes for the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from sppo_megatron.cluster.consensus import of_all_ranks
from sppo_megatron.cluster.interrupt import Interrupted, any_was_told
from sppo_megatron.policy.generate.inference import forward_logits, inference_layout
from sppo_megatron.policy.generate.sampling import sample_tokens
from sppo_megatron.policy.model.build import unwrap
from sppo_megatron.types import SamplingParams

PASSES_BETWEEN_CHECKS = 16  # between two looks whether the job was told to stop


class Generator:
    """Continues token sequences with the weights that are being trained (see rollout.megatron.TokenGenerator)."""

    def __init__(
        self,
        chunks: list[nn.Module],
        config: TransformerConfig,
        groups: ProcessGroupCollection,
        vocab_size: int,
        device: torch.device,
    ):
        self._models = [unwrap(chunk) for chunk in chunks]
        self._config = config
        self._groups = groups
        self._vocab_size = vocab_size
        self._device = device

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[np.ndarray],
        uniforms: Callable[[int], np.ndarray],
        params: SamplingParams,
        batch_size: int,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """(token_ids int32 [n], log_probs float32 [n] nats) for each prompt, in order, the same on every rank.

        prompts: int32 [prompt_length], none empty. uniforms: float64 [max_new_tokens] of a place in them,
        drawn by the replica that continues that prompt, when it does. A replica works on batch_size sequences at a
        time, those of similar prompt length together. Raises Interrupted, the same on every rank, if the job is told
        to stop meanwhile.
        """
        replicas = self._groups.dp_cp
        order = list(range(replicas.rank(), len(prompts), replicas.size()))
        order.sort(key=lambda i: len(prompts[i]))  # stable: samples of one prompt stay together
        results: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        others = _Others(self._groups, self._device)
        mine: dict[int, tuple[np.ndarray, np.ndarray]] | None = None
        with contextlib.suppress(Interrupted), inference_layout(self._models, self._config):
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                done = self._generate_batch([prompts[i] for i in batch], [uniforms(i) for i in batch], params, others)
                results.update(zip(batch, done, strict=True))
            self._step_with_others(others)
            mine = results
        shares = of_all_ranks(mine, replicas)
        if None in shares:
            raise Interrupted
        merged = {i: result for share in shares for i, result in share.items()}  # type: ignore[union-attr]
        return [merged[i] for i in range(len(prompts))]

    def _generate_batch(
        self, prompts: list[np.ndarray], uniforms: list[np.ndarray], params: SamplingParams, others: _Others
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """All rows start at position 0 and advance together; a row whose prompt is longer is fed its prompt meanwhile.

        Rows that are done leave the batch once half of it is done.
        """
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self._device)
        total = int(lengths.max()) + params.max_new_tokens
        tokens = torch.zeros(len(prompts), total, dtype=torch.int64, device=self._device)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.from_numpy(prompt.astype(np.int64)).to(self._device)
        log_probs = torch.zeros(len(prompts), total, dtype=torch.float32, device=self._device)
        draws = torch.from_numpy(np.stack(uniforms)).to(self._device)
        ends = lengths + params.max_new_tokens  # exclusive end of each sequence; moved forward at a stop token
        stop_ids = torch.tensor(sorted(params.stop_token_ids), dtype=torch.int64, device=self._device)

        context = StaticInferenceContext(max_batch_size=len(prompts), max_sequence_length=total)
        active = torch.arange(len(prompts), device=self._device)  # rows of `tokens` behind the rows of the cache
        position = int(lengths.min())
        fed = tokens[:, :position]
        while others.any_generates(True):
            logits = self._forward(fed, context)
            draw = draws[active, (position - lengths[active]).clamp(min=0, max=params.max_new_tokens - 1)]
            new, new_log_probs = self._draw(logits, draw, params)
            generating = (lengths[active] <= position) & (position < ends[active])
            tokens[active, position] = torch.where(generating, new, tokens[active, position])
            log_probs[active, position] = torch.where(generating, new_log_probs, 0.0)
            stopped = generating & torch.isin(new, stop_ids)
            ends[active] = torch.where(stopped, position + 1, ends[active])
            position += 1
            alive = ends[active] > position
            if position >= total or not bool(alive.any()):
                break
            if int(alive.sum()) * 2 <= len(active):
                _keep_rows(context, alive)
                active = active[alive]
            fed = tokens[active, position - 1 : position]
        return _cut(tokens, log_probs, lengths, ends)

    def _draw(self, logits: Tensor | None, uniforms: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
        """The last pipeline stage samples, and every stage of the pipeline gets the result."""
        pp = self._groups.pp
        if logits is not None:
            new, log_probs = sample_tokens(logits[:, : self._vocab_size], uniforms, params)
        else:
            new = torch.zeros(len(uniforms), dtype=torch.int64, device=self._device)
            log_probs = torch.zeros(len(uniforms), dtype=torch.float32, device=self._device)
        if pp.size() > 1:
            dist.broadcast(new, group=pp, group_src=pp.size() - 1)
            dist.broadcast(log_probs, group=pp, group_src=pp.size() - 1)
        return new, log_probs

    def _step_with_others(self, others: _Others) -> None:
        """Passes of one token that counts for nothing, as long as another replica's tokens may need experts here."""
        fed = torch.zeros(1, 1, dtype=torch.int64, device=self._device)
        while others.any_generates(False):
            self._forward(fed, StaticInferenceContext(max_batch_size=1, max_sequence_length=1))

    def _forward(self, fed: Tensor, context: StaticInferenceContext) -> Tensor | None:
        return forward_logits(self._models, self._config, self._groups, fed, context)


class _Others:
    """The replicas whose experts are spread over each other: all of them make a pass, or none."""

    def __init__(self, groups: ProcessGroupCollection, device: torch.device):
        self._replica = groups.mp
        self._count = 0
        # The expert-parallel block of ranks is whole replicas, or a part of one, whose ranks step together anyway.
        self._group = groups.tp_ep if groups.ep.size() > 1 or groups.expt_tp.size() > groups.tp.size() else None
        self._flag = torch.zeros(1, dtype=torch.int32, device=device)

    def any_generates(self, this_one: bool) -> bool:
        """Whether this replica or another makes a pass now. Called by all of them before each pass.

        Raises Interrupted, on all of them, if one was told to stop.
        """
        if self._count % PASSES_BETWEEN_CHECKS == 0:
            block = [self._replica] if self._group is None else [self._replica, self._group]
            if any_was_told(self._flag.device, *block):
                raise Interrupted
        self._count += 1
        if self._group is None:
            return this_one
        self._flag.fill_(int(this_one))
        dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, group=self._group)
        return bool(self._flag.item())


def _keep_rows(context: StaticInferenceContext, keep: Tensor) -> None:
    caches = context.key_value_memory_dict
    for layer, (keys, values) in caches.items():
        caches[layer] = (keys[:, keep], values[:, keep])
    context.max_batch_size = int(keep.sum())


def _cut(tokens: Tensor, log_probs: Tensor, lengths: Tensor, ends: Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    ids, values = tokens.cpu().numpy().astype(np.int32), log_probs.cpu().numpy()
    spans = zip(lengths.tolist(), ends.tolist(), strict=True)
    return [(ids[row, start:end].copy(), values[row, start:end].copy()) for row, (start, end) in enumerate(spans)]
