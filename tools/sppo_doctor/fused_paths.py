"""Which implementation each operation of a training step will use here, by the rules that the policy follows."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sppo_doctor.finding import OK, WARNING, Finding
from sppo_megatron.parallel.fused_kernels import has_apex, has_apex_weight_gradient, has_transformer_engine
from sppo_megatron.parallel.kernels import select_kernels

AREA = "implementations"
TE, APEX = "Transformer Engine", "apex"


def check_fused_paths() -> Iterator[Finding]:
    """On a GPU a slow path is a warning with what would make it fast; on CPU it is the only one there is."""
    te, apex, apex_gradient = has_transformer_engine(), has_apex(), has_apex_weight_gradient()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    install = "install Transformer Engine"
    paths = (
        ("layers and norms", TE if te else "torch", te, install),
        ("attention", f"{TE} (FlashAttention, cuDNN)" if te else "torch's scaled_dot_product_attention", te, install),
        ("mixture of experts", f"{TE}'s grouped products" if te else "one expert after the other", te, install),
        ("Adam", f"{TE}'s, fused" if te else "apex's, fused" if apex else "torch's AdamW", te or apex, install),
        (
            "gradient norm",
            f"{TE}'s, all tensors at once" if te else "apex's, all tensors at once" if apex else "one by one",
            te or apex,
            install,
        ),
        (
            "weight gradients",
            f"added in fp32 within the product, by {TE if te else APEX}"
            if te or apex_gradient
            else "computed in the parameters' dtype, then added",
            te or apex_gradient,
            install,
        ),
        _log_prob_path(device),
    )
    for subject, text, fused, fix in paths:
        slow = device.type == "cuda" and not fused
        yield Finding(AREA, subject, WARNING if slow else OK, text, fix if slow else None)


def _log_prob_path(device: torch.device) -> tuple[str, str, bool, str]:
    kernels = select_kernels("auto", device, torch.float32)
    text = "plain torch, tile by tile" if kernels is None else "Triton kernels"
    return "log-probs", f"{text}; the head's gradient is added in fp32", kernels is not None, "pip install triton"
