"""The policy that the trainer sees: log-probs of samples, one optimizer step, weights out. Megatron stays in here."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from itertools import tee
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.distributed import finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from sppo_megatron.batch.collate import collate
from sppo_megatron.batch.micro_batches import MicroBatchLayout, micro_batch_shapes, plan_micro_batches
from sppo_megatron.batch.sequences import Sequences
from sppo_megatron.batch.shared_prompts import shared_prompts
from sppo_megatron.batch.training_batch import NOTHING, TrainingBatch, single_units
from sppo_megatron.cluster.interrupt import raise_if_any_was_told, until_told
from sppo_megatron.config import Config
from sppo_megatron.errors import ConfigError, TrainingError
from sppo_megatron.objective import finalize_diagnostics
from sppo_megatron.objective.registry import build_objective
from sppo_megatron.parallel import reduce_max, reduce_sums
from sppo_megatron.policy.initialize import local_device
from sppo_megatron.policy.model.build import wrap_data_parallel
from sppo_megatron.policy.model.fp8 import token_multiple
from sppo_megatron.policy.model.mapped import MappedModel
from sppo_megatron.policy.model.router import mean_load_balancing_loss
from sppo_megatron.policy.step.attention_cost import break_even_tokens
from sppo_megatron.policy.step.forward_step import ForwardStep, TrainingLoss, collect_log_probs
from sppo_megatron.policy.step.lm_head import build_heads
from sppo_megatron.policy.step.optimizer import build_optimizer, build_scheduler


class Policy:
    """π_θ in its parallel layout, with its optimizer. Every method is collective: all ranks call it together."""

    def __init__(self, run: Config, model: MappedModel, groups: ProcessGroupCollection, total_steps: int):
        """Builds the model, loads its weights and wraps it. total_steps: optimizer steps of the whole run."""
        self.groups = groups
        self.device = local_device()
        self.model = model
        self.config, chunks = model.build(run, groups)
        model.load_weights(chunks, groups)
        self.chunks: list[Any] = wrap_data_parallel(chunks, self.config, run, groups)
        self.optimizer = build_optimizer(self.chunks, run, groups)
        self.scheduler = build_scheduler(self.optimizer, run, total_steps)
        self.uses_distributed_optimizer = run.optimizer.use_distributed_optimizer
        self._overlaps_param_gather = run.parallelism.overlap_param_gather
        self._connect_schedule(run)
        self._lacks_fp8_scales = run.precision.fp8 is not None and run.precision.fp8_recipe == "delayed"
        self.objective = build_objective(vars(run.objective), run.rollout.max_response_length)
        self._log_prob_head, self.training_head = build_heads(run, groups, model.vocab_size, self.objective)
        self._layout = MicroBatchLayout(
            micro_batch_size=run.train.micro_batch_size,
            max_tokens=run.train.max_tokens_per_micro_batch,
            cp_size=groups.cp.size(),
            cp_rank=groups.cp.rank(),
            sequence_parallel_size=groups.tp.size() if run.parallelism.sequence_parallel else 1,
            token_multiple=token_multiple(run.precision),
            # Micro-batches of a pipeline all have the shape of the largest: there their number is the cost.
            break_even_tokens=break_even_tokens(self.config) if groups.pp.size() == 1 else None,
            shared_prompts=run.train.shared_prompts,
        )

    def _connect_schedule(self, run: Config) -> None:
        self.config.finalize_model_grads_func = self._finalize_gradients
        self.config.grad_scale_func = self.optimizer.scale_loss
        if run.parallelism.overlap_grad_reduce:
            functions = [chunk.no_sync for chunk in self.chunks]
            self.config.no_sync_func = functions if len(functions) > 1 else functions[0]

    def _finalize_gradients(self, *arguments: Any, **options: Any) -> None:
        """Megatron's, after the schedule's last micro-batch, unless the job was told to stop meanwhile."""
        raise_if_any_was_told(self.device)
        finalize_model_grads(*arguments, **options)

    def close(self) -> None:
        """Takes the model apart, so that its buffers and process groups are freed. The policy is not used afterwards.

        Megatron's gradient hooks hold their model through autograd nodes, a cycle that Python's collector can't see.
        """
        for chunk in self.chunks:
            for module in list(chunk.modules()):
                vars(module).clear()
        self.chunks.clear()

    def synchronize_parameters(self) -> None:
        """Ends the overlapped parameter all-gather of the last step: before weights are read outside a forward pass."""
        if self._overlaps_param_gather:
            for chunk in self.chunks:
                chunk.start_param_sync(force_sync=True)

    @property
    def is_last_stage(self) -> bool:
        return self.groups.pp.rank() == self.groups.pp.size() - 1

    # ---------------------------------------------------------------- log-probs

    def compute_log_probs(self, sequences: Sequences) -> tuple[np.ndarray, float]:
        """log π_θ of every response token under the current weights, and the mean entropy per token that counts.

        Returns (log-probs: float32 [T] nats, 0 for masked-out tokens; entropy in nats), the same on every rank.
        Raises ConfigError if a sequence is longer than the model's rotary positions are defined for, and Interrupted
        if the job is told to stop, within a micro-batch.
        """
        self._check_lengths(sequences)
        batch = TrainingBatch(sequences, np.zeros(sequences.total, np.float32))
        units = single_units(len(sequences))
        with self._evaluating():
            if self._lacks_fp8_scales:
                # Delayed scaling measures tensors only if gradients are enabled, and starts with scales of 1, in which
                # small weights are lost: a first pass gives it scales.
                self._run_schedule(batch, units, lambda _: collect_log_probs, forward_only=True, with_grad=True)
                self._lacks_fp8_scales = False
            records = self._run_schedule(batch, units, lambda _: collect_log_probs, forward_only=True)
        log_probs = torch.zeros(len(batch.old_log_probs), device=self.device)
        entropy = torch.zeros((), dtype=torch.float64, device=self.device)
        if self.groups.tp.rank() == 0:  # tensor-parallel ranks hold the same values: one of them reports
            for token_index, (of_tokens, entropies) in records:
                log_probs[token_index] = of_tokens
                entropy += entropies.sum(dtype=torch.float64)
        dist.all_reduce(log_probs)  # each token is nonzero on one rank: sums are copies
        dist.all_reduce(entropy)
        return log_probs.cpu().numpy(), float(entropy) / max(1, int(sequences.lengths.sum()))

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        for chunk in self.chunks:
            chunk.eval()
        try:
            yield
        finally:
            for chunk in self.chunks:
                chunk.train()

    def _check_lengths(self, sequences: Sequences) -> None:
        limit, found = self.model.longest_sequence, int(sequences.num_tokens.max(initial=0))
        if limit is not None and found > limit:
            raise ConfigError(
                f"a sequence of {found} tokens: the positions of this model change beyond {limit} tokens, which is not "
                "supported; make prompts and rollout.max_response_length shorter"
            )

    # ---------------------------------------------------------------- training

    def train_step(self, batch: TrainingBatch, units: np.ndarray) -> dict[str, float]:
        """One optimizer step on one mini-batch, given whole on every rank; returns its metrics, the same on every rank.

        units: one of batch.minibatches. Raises TrainingError if the loss or the gradient norm isn't finite, and
        Interrupted if the job is told to stop, within a micro-batch; weights and optimizer are then as before.
        """
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        count = max(1.0, self.objective.count(np.where(units != NOTHING, batch.sequences.lengths[units], NOTHING)))
        with_rollout = batch.has_rollout is not None and bool(batch.has_rollout[units[units != NOTHING]].all())

        def finish(num_microbatches: int) -> TrainingLoss:
            return TrainingLoss(self.objective, self.groups, count, num_microbatches, with_rollout)

        records = self._run_schedule(batch, units, finish, forward_only=False)
        lr = self.optimizer.param_groups[0]["lr"]
        updated, grad_norm, _ = self.optimizer.step()
        if updated:
            self.scheduler.step(increment=1)
        metrics = self._reduce_metrics(records, count)
        if self.config.num_moe_experts is not None and self.config.moe_aux_loss_coeff:
            metrics["moe_aux_loss"] = mean_load_balancing_loss(self.groups.tp.size() * self.groups.cp.size())
        metrics |= {"grad_norm": float(grad_norm or 0.0), "lr": float(lr), "skipped": float(not updated)}
        if updated and not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])):
            raise TrainingError(
                f"loss {metrics['loss']} and gradient norm {metrics['grad_norm']} must be finite: "
                "lower optimizer.lr or objective.eta, or continue from the last checkpoint with checkpoint.load=latest"
            )
        return metrics

    def _run_schedule(
        self,
        batch: TrainingBatch,
        units: np.ndarray,
        finish_for: Callable[[int], Callable[..., Any]],
        *,
        forward_only: bool,
        with_grad: bool = False,
    ) -> list[Any]:
        """Megatron's schedule over this data-parallel rank's share; what `finish` returned (last stage, else []).

        Raises Interrupted, the same on every rank, if the job is told to stop meanwhile.
        """
        pp_size = self.groups.pp.size()
        interleaved = len(self.chunks) > 1
        num_tokens = batch.sequences.num_tokens
        sharing = shared_prompts(batch.sequences, self._layout.shared_prompts)
        plan = plan_micro_batches(
            units,
            num_tokens,
            self._layout,
            self.groups.dp.size(),
            multiple_of=pp_size if interleaved else 1,
            sharing=sharing,
        )[self.groups.dp.rank()]
        shapes = micro_batch_shapes(plan, num_tokens, self._layout, equal=pp_size > 1, sharing=sharing)
        # Made as the schedule asks for them; every chunk of the model goes through all of them.
        micro_batches = (
            collate(batch, share, self._layout, shape, sharing) for share, shape in zip(plan, shapes, strict=True)
        )
        iterators = tee(micro_batches, len(self.chunks))
        head = self._log_prob_head if forward_only else self.training_head
        step = ForwardStep(head, self.groups, self.device, finish_for(len(plan)), shapes[0])
        with torch.set_grad_enabled(with_grad or not forward_only):
            records = get_forward_backward_func()(
                forward_step_func=step,
                data_iterator=list(iterators) if interleaved else iterators[0],
                model=self.chunks if interleaved else self.chunks[0],
                num_microbatches=len(plan),
                seq_length=shapes[0][1],
                micro_batch_size=shapes[0][0],
                forward_only=forward_only,
            )
        if forward_only:  # else gradients were finalized
            raise_if_any_was_told(self.device)
        return records

    def _reduce_metrics(self, records: list[dict[str, dict[str, Tensor]]], count: float) -> dict[str, float]:
        """Global sums over micro-batches, data- and context-parallel ranks; then the last stage tells the others."""
        metrics: dict[str, float] = {}
        if self.is_last_stage:
            sums = _add([record["token"] for record in records])
            sequence = _add([record["sequence"] for record in records])
            # Sequences are complete on every context-parallel rank: the first one counts them. Tokens are not.
            own = self.groups.cp.rank() == 0
            sums |= {name: value if own else torch.zeros_like(value) for name, value in sequence.items()}
            maxima = {
                name: torch.stack([record["maxima"][name].double() for record in records]).max()
                for name in records[0]["maxima"]
            }
            totals = reduce_sums(sums, self.groups.dp_cp)
            metrics = finalize_diagnostics(totals, reduce_max(maxima, self.groups.dp_cp), self.objective.means)
            metrics["loss"] = totals["loss_sum"] / count
        shared = [metrics]
        dist.broadcast_object_list(shared, group=self.groups.pp, group_src=self.groups.pp.size() - 1)
        return shared[0]

    # ---------------------------------------------------------------- weights

    def export_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Whole tensors by Hugging Face names, streamed, the same on every rank; every rank iterates to the end.

        Raises Interrupted between two of them, on every rank, if the job is told to stop.
        """
        self.synchronize_parameters()
        return until_told(self.model.export_weights(self.chunks, self.groups), self.device)


def _add(records: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([record[name].double() for record in records]).sum() for name in records[0]}
