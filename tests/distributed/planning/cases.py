"""Which layouts are measured, at how many ranks, on which model."""

from __future__ import annotations

from dataclasses import dataclass, field

TP, PP, VPP = (f"parallelism.{name}_model_parallel_size" for name in ("tensor", "pipeline", "virtual_pipeline"))
CP = "parallelism.context_parallel_size"
EP, ETP = "parallelism.expert_model_parallel_size", "parallelism.expert_tensor_parallel_size"
SP = "parallelism.sequence_parallel"
PLAIN_ADAM = {"optimizer.use_distributed_optimizer": "false"}
OVERLAPPED = {"parallelism.overlap_grad_reduce": "true", "parallelism.overlap_param_gather": "true"}
BF16 = {"precision.dtype": "bf16"}
FULL = {"model.recompute_granularity": "full"}
BLOCK = {**FULL, "model.recompute_method": "block", "model.recompute_num_layers": 1}
SELECTIVE = {"model.recompute_granularity": "selective"}


@dataclass(frozen=True)
class Case:
    name: str
    world_size: int
    overrides: dict[str, object] = field(default_factory=dict)
    model: str = "qwen2"


CASES = [
    Case("one-process", 1),
    Case("one-process-bf16", 1, BF16),
    Case("one-process-plain-adam", 1, PLAIN_ADAM),
    Case("one-process-plain-adam-bf16", 1, {**PLAIN_ADAM, **BF16}),
    Case("one-process-tied", 1, model="qwen2-tied"),
    Case("one-process-qwen3", 1, model="qwen3"),
    Case("one-process-qwen2-moe", 1, model="qwen2-moe"),
    Case("one-process-qwen3-moe-bf16", 1, BF16, "qwen3-moe"),
    Case("one-process-gemma3", 1, model="gemma3"),
    Case("one-process-glm4-moe", 1, model="glm4-moe"),
    Case("one-process-deepseek-v3", 1, model="deepseek-v3"),
    Case("one-process-gpt-oss", 1, model="gpt-oss"),
    Case("tp2-sp-deepseek-v3", 2, {TP: 2, SP: "true"}, "deepseek-v3"),
    Case("ep2-glm4-moe", 2, {EP: 2}, "glm4-moe"),
    Case("one-process-selective", 1, SELECTIVE),
    Case("one-process-full", 1, FULL),
    Case("one-process-full-two-layers", 1, {**FULL, "model.recompute_num_layers": 2}),
    Case("one-process-block", 1, BLOCK),
    Case("one-process-unfused", 1, {"train.fused_loss": "false"}),
    Case("tp2", 2, {TP: 2}),
    Case("tp2-sp-bf16", 2, {TP: 2, SP: "true", **BF16}),
    Case("tp2-sp-full", 2, {TP: 2, SP: "true", **FULL}),
    Case("pp2-tied", 2, {PP: 2}, "qwen2-tied"),
    Case("pp2-bf16", 2, {PP: 2, **BF16}),
    Case("pp2-full", 2, {PP: 2, **FULL}),
    Case("pp2-vpp2", 2, {PP: 2, VPP: 2}),
    Case("pp2-vpp2-tied", 2, {PP: 2, VPP: 2}, "qwen2-tied"),
    Case("dp2", 2),
    Case("dp2-bf16", 2, BF16),
    Case("dp2-tied-overlapped", 2, OVERLAPPED, "qwen2-tied"),
    Case("dp2-plain-adam", 2, PLAIN_ADAM),
    Case("dp2-plain-adam-bf16", 2, {**PLAIN_ADAM, **BF16}),
    Case("cp2", 2, {CP: 2}),
    Case("ep2", 2, {EP: 2}, "qwen3-moe"),
    Case("ep2-bf16-qwen2-moe", 2, {EP: 2, **BF16}, "qwen2-moe"),
    Case("ep2-plain-adam", 2, {EP: 2, **PLAIN_ADAM}, "qwen3-moe"),
    Case("tp2-sp-etp1", 2, {TP: 2, SP: "true", ETP: 1}, "qwen3-moe"),
    Case("tp2-pp2", 4, {TP: 2, SP: "true", PP: 2}),
    Case("tp2-pp2-tied-bf16", 4, {TP: 2, PP: 2, **BF16}, "qwen2-tied"),
    Case("pp2-dp2-tied-overlapped", 4, {PP: 2, **OVERLAPPED}, "qwen2-tied"),
    Case("ep2-dp2", 4, {EP: 2}, "qwen3-moe"),
    Case("tp2-sp-ep2-etp1", 4, {TP: 2, SP: "true", EP: 2, ETP: 1, **BF16}, "qwen3-moe"),
    Case("pp4", 4, {PP: 4}),
]
