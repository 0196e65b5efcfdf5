"""FP8: which keys go together, and what a recipe needs of the machine.

Megatron-Core makes some of these checks in its own argument parser alone, and without Transformer Engine it ignores FP8
in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sppo_megatron.config.keys import AtLeastOne, Fixed, Free, NextIteration, NotNegative, Positive

if TYPE_CHECKING:
    from sppo_megatron.config.schema import Config

Dtype = Literal["fp32", "bf16", "fp16"]
Version = tuple[int, int]


@dataclass
class PrecisionConfig:
    """Number formats. FP8 is for the layers' matrix products: LM head, embedding and log-probs stay in dtype, fp32."""

    dtype: Fixed[Dtype] = "bf16"
    "Of parameters and activations; fp16 has a dynamic loss scale."
    initial_loss_scale: Fixed[Positive[float]] = 65536.0
    "Where fp16's dynamic loss scale starts."
    fp8: NextIteration[Literal["hybrid", "e4m3"] | None] = None
    "FP8 by Transformer Engine: hybrid has gradients in e5m2, e4m3 everything; null = no FP8."
    fp8_recipe: NextIteration[Literal["delayed", "tensorwise", "blockwise", "mxfp8"]] = "blockwise"
    "How values are scaled to FP8."
    fp8_param: NextIteration[bool] = False
    "Store and gather weights in FP8, too; the optimizer keeps them in fp32."
    fp8_margin: NextIteration[NotNegative[int]] = 0
    "Of the delayed recipe alone: powers of two between the largest value and FP8's largest."
    fp8_amax_history_len: NextIteration[AtLeastOne[int]] = 1
    "Of the delayed recipe alone: steps whose largest values are remembered."
    fp8_amax_compute_algo: NextIteration[Literal["most_recent", "max"]] = "most_recent"
    "Of the delayed recipe alone: which of the remembered values is taken."
    first_last_layers_bf16: NextIteration[bool] = False
    "Keep the first and the last layers in bf16."
    num_layers_at_start_in_bf16: NextIteration[NotNegative[int]] = 1
    "How many of the first, with first_last_layers_bf16."
    num_layers_at_end_in_bf16: NextIteration[NotNegative[int]] = 1
    "How many of the last, with first_last_layers_bf16."
    fp8_probe_samples: Free[NotNegative[int]] = 16
    "Responses of each iteration whose log-probs are computed without FP8, too, for comparison."
    fp8_max_log_ratio_diff: Free[Positive[float] | None] = None
    "Nats a response: the mean difference above which the run stops; null = it is only logged."


@dataclass(frozen=True)
class DeviceRequirement:
    """Compute capability in [capability, below), and the CUDA version that torch is built for."""

    capability: Version
    cuda: Version
    below: Version | None = None

    def is_met(self, capability: Version, cuda: Version) -> bool:
        return self.capability <= capability < (self.below or (999, 0)) and cuda >= self.cuda

    def __str__(self) -> str:
        below = f" (below {_dotted(self.below)})" if self.below else ""
        return f"compute capability {_dotted(self.capability)}{below} and CUDA {_dotted(self.cuda)}"


# From Transformer Engine's own checks (transformer_engine/pytorch/quantization.py).
FP8_REQUIREMENTS = {
    "delayed": DeviceRequirement((8, 9), cuda=(12, 1)),
    "tensorwise": DeviceRequirement((8, 9), cuda=(12, 1)),
    "blockwise": DeviceRequirement((9, 0), cuda=(12, 9)),
    "mxfp8": DeviceRequirement((10, 0), cuda=(12, 8), below=(12, 0)),
}
_DELAYED_ALONE = ("fp8_margin", "fp8_amax_history_len", "fp8_amax_compute_algo")


def check_precision(config: Config) -> Iterator[str]:
    p, recipe = config.precision, config.precision.fp8_recipe
    if p.fp8 is None:
        for key in ("fp8_param", "first_last_layers_bf16"):
            if getattr(p, key):
                yield f"precision.{key}=true needs precision.fp8: choose precision=fp8_blockwise or set it to false"
        return
    if p.dtype != "bf16":
        yield f"precision.fp8={p.fp8} needs precision.dtype=bf16, not {p.dtype}: that is what it is mixed with"
    if recipe == "delayed" and p.first_last_layers_bf16:
        yield (
            "precision.first_last_layers_bf16=true can't be had with precision.fp8_recipe=delayed, whose scales are "
            "reduced once for all layers: choose another recipe"
        )
    for key in _DELAYED_ALONE if recipe != "delayed" else ():
        if getattr(p, key) != getattr(PrecisionConfig(), key):
            yield f"precision.{key} is read by the delayed recipe alone, and precision.fp8_recipe is {recipe}"
    if p.fp8_param and not config.optimizer.use_distributed_optimizer:
        yield (
            "precision.fp8_param=true needs optimizer.use_distributed_optimizer=true, "
            "which alone turns its fp32 weights into FP8 ones"
        )
    if p.fp8_param and recipe == "mxfp8":
        yield (
            "precision.fp8_param=true can't be had with precision.fp8_recipe=mxfp8, whose weights don't fit into the "
            "optimizer's buffers: set precision.fp8_param=false"
        )


def find_fp8_problem(
    precision: PrecisionConfig, *, transformer_engine: bool, capability: Version | None, cuda: Version
) -> str | None:
    """Why the configured FP8 can't run on this machine, with the way out; None if it can, or if FP8 is off.

    transformer_engine: whether it is installed. capability: of the GPU, None without one. cuda: torch's.
    """
    if precision.fp8 is None:
        return None
    if capability is None or not transformer_engine:
        lacking = " and ".join(
            name
            for name, there in (("a CUDA device", capability), ("Transformer Engine", transformer_engine))
            if not there
        )
        return (
            f"precision.fp8={precision.fp8} needs a CUDA device and Transformer Engine, and this machine lacks "
            f"{lacking}: pip install --no-build-isolation 'sppo-megatron[gpu]' on a GPU machine, or set precision=bf16"
        )
    requirement = FP8_REQUIREMENTS[precision.fp8_recipe]
    if requirement.is_met(capability, cuda):
        return None
    others = [name for name, other in FP8_REQUIREMENTS.items() if other.is_met(capability, cuda)]
    return (
        f"precision.fp8_recipe={precision.fp8_recipe} needs {requirement}, and here are {_dotted(capability)} and "
        f"{_dotted(cuda)}: choose "
        + (f"precision.fp8_recipe={' or '.join(others)}" if others else "precision=bf16, as this GPU has no FP8")
    )


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))
