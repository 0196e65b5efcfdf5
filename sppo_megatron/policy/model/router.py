"""The router of a mixture of experts: Megatron-Core's, with a load-balancing loss that padding has no part in."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.moe_logging import destroy_moe_metrics_tracker, get_moe_metrics_tracker
from megatron.core.transformer.moe.moe_utils import (
    get_tokens_per_expert_and_token_count,
    switch_load_balancing_loss_func,
)
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor, nn

from sppo_megatron.parallel import reduce_sums

# what is recorded of each micro-batch and layer: the loss, divided by its coefficient, and a 1
_LOSS, _COUNT = "load_balancing_loss", "load_balancing_count"


class Router(TopKRouter):
    """Top-k routing. The loss of one micro-batch and layer is coeff · E · Σ_e f_e · P_e over its real tokens.

    f_e: the share of the (token, choice) pairs that chose expert e; P_e: its mean probability; E: number of experts.
    """

    def keep_fp32(self) -> None:
        """The bias and the counts that it follows are fp32, whatever the model: a half float counts to 256."""
        self.expert_bias.data = self.expert_bias.data.float()
        self.local_tokens_per_expert.data = self.local_tokens_per_expert.data.float()

    def _apply_expert_bias(self, routing_map: Tensor, padding_mask: Tensor | None = None) -> None:
        """Counts the choices of real tokens; Megatron's own takes the [tokens] mask for one of the map's shape."""
        super()._apply_expert_bias(routing_map, None if padding_mask is None else padding_mask[:, None])

    def _apply_aux_loss(
        self, probs: Tensor, scores_for_aux_loss: Tensor, routing_map: Tensor, with_padding_mask: bool = False
    ) -> Tensor:
        coefficient = self.get_aux_loss_coeff("aux_loss")
        if coefficient == 0:
            return probs
        tokens_per_expert, local_count, count = get_tokens_per_expert_and_token_count(
            routing_map=routing_map,
            reduce_group=self.tp_cp_group,
            topk=self.topk,
            with_padding_mask=with_padding_mask,
        )
        loss = switch_load_balancing_loss_func(
            probs=scores_for_aux_loss,
            tokens_per_expert=tokens_per_expert,
            # A micro-batch that is padding alone has no balance: its loss is 0, where Megatron's own divides by 0.
            total_num_tokens=count.clamp(min=1) if with_padding_mask else count,
            topk=self.topk,
            num_experts=self.config.num_moe_experts,
            moe_aux_loss_coeff=coefficient,
        )
        get_moe_metrics_tracker().record(_COUNT, torch.ones_like(loss), self.layer_number, self.config.num_layers)
        return self.attach_and_log_load_balancing_loss(
            probs, coefficient, loss, _LOSS, self.tp_cp_group, valid_token_count=local_count
        )


def routers_with_bias(model: nn.Module) -> list[Router]:
    return [module for module in model.modules() if isinstance(module, Router) and module.enable_expert_bias]


def named_expert_biases(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The [experts] biases of a chunk by their names in it, in the order of the layers."""
    for name, module in model.named_modules():
        if isinstance(module, Router) and module.enable_expert_bias:
            yield f"{name}.expert_bias", module.expert_bias


def mean_load_balancing_loss(tp_cp_size: int) -> float:
    """E · Σ_e f_e · P_e of what was trained on since the last call: its mean over layers and micro-batches; 1 is even.

    Collective over all ranks, and the same on each. tp_cp_size: tensor- times context-parallel ranks, each of which
    recorded its own tokens' part of a loss, and its count.
    """
    recorded = get_moe_metrics_tracker().metrics
    destroy_moe_metrics_tracker()
    sums = {name: recorded[name].values.sum() if name in recorded else torch.zeros(()) for name in (_LOSS, _COUNT)}
    totals = reduce_sums(sums, dist.group.WORLD)
    return totals[_LOSS] * tp_cp_size / max(1.0, totals[_COUNT])
