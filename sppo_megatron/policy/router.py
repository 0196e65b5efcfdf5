"""The router of a mixture of experts: Megatron-Core's, with a load-balancing loss that padding has no part in."""

from __future__ import annotations

from megatron.core.transformer.moe.moe_utils import (
    get_tokens_per_expert_and_token_count,
    switch_load_balancing_loss_func,
)
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor


class Router(TopKRouter):
    """Top-k routing. The loss of one micro-batch and layer is coeff · E · Σ_e f_e · P_e over its real tokens.

    f_e: the share of the (token, choice) pairs that chose expert e; P_e: its mean probability; E: number of experts.
    """

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
        return self.attach_and_log_load_balancing_loss(
            probs, coefficient, loss, "load_balancing_loss", self.tp_cp_group, valid_token_count=local_count
        )
