"""Which models go through which layouts; every family and option goes through several."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.distributed.layouts import models


@dataclass(frozen=True)
class Case:
    model: str
    layout: str
    parallelism: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.model}-{self.layout}"

    @property
    def world_size(self) -> int:
        return int(self.layout.partition("-")[0].removeprefix("world"))


TP, PP, VPP = (f"{name}_model_parallel_size" for name in ("tensor", "pipeline", "virtual_pipeline"))
EP, ETP = "expert_model_parallel_size", "expert_tensor_parallel_size"
DENSE = (
    "qwen2-tied",
    "qwen2",
    "qwen2-bf16",
    "qwen3",
    "llama",
    "llama-linear-rope",
    "llama-tied-one-kv-head",
    "mistral",
    "mistral-wide-heads",
    *(kind for kind in models.KINDS if kind not in models.MIXTURES),
)
MIXTURES = ("mixtral", "qwen2-moe", "qwen3-moe", *models.MIXTURES)
TEXT_PARTS = tuple(models.TEXT_PARTS)
LAYOUTS = {
    "world2-tp2": {TP: 2},
    "world2-pp2-vpp2": {PP: 2, VPP: 2},
    "world2-ep2": {EP: 2},
    "world2-tp2-ep2-etp1": {TP: 2, EP: 2, ETP: 1},
    "world4-tp4": {TP: 4},
    "world4-tp2-pp2": {TP: 2, PP: 2},
    "world4-tp2-ep2": {TP: 2, EP: 2},
    "world4-pp2-ep2": {PP: 2, EP: 2},
    "world4-ep4": {EP: 4},
}
WHOLE_EXPERTS = {
    f"{layout}-etp1": sizes | {ETP: 1} for layout, sizes in LAYOUTS.items() if sizes.keys() & {TP} and ETP not in sizes
}
# More tensor-parallel ranks than key-value heads.
FEW_HEADS = ("qwen2", "llama-tied-one-kv-head", "mixtral")
CASES = [
    Case(model, layout, sizes)
    for layout, sizes in LAYOUTS.items()
    for model in (MIXTURES if EP in sizes else FEW_HEADS if layout == "world4-tp4" else DENSE + MIXTURES + TEXT_PARTS)
    if not (model in models.BIASED_EXPERTS and f"{layout}-etp1" in WHOLE_EXPERTS)
]
CASES += [
    Case(model, layout, sizes)
    for layout, sizes in WHOLE_EXPERTS.items()
    for model in models.BIASED_EXPERTS
    if not layout.startswith("world4-tp4")
]
