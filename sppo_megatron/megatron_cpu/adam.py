"""Places of Megatron-Core's optimizers that assume a fused Adam, fixed for torch's.

Megatron-Core takes torch's AdamW if neither Transformer Engine nor NVIDIA's apex is installed, on CPU and on GPUs.
Each patch says what goes wrong without it; `tests/distributed` fails when one is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import ChainedOptimizer, Float16OptimizerWithFloat16Params, FP32Optimizer


def apply() -> None:
    """Installs every patch, once in a process."""
    _initialize_state_before_load()
    _own_step_per_parameter()
    _step_without_parameters()


def _initialize_state_before_load() -> None:
    """torch's AdamW makes its state in the first step, and loading asks for its shapes before that."""
    original = DistributedOptimizer.sharded_state_dict

    def sharded_state_dict(self, model_sharded_state_dict: Any, is_loading: bool = False, *args: Any, **kwargs: Any):
        if is_loading and not self.optimizer.state:
            learning_rates = [group["lr"] for group in self.optimizer.param_groups]
            for group in self.optimizer.param_groups:
                group["lr"] = 0.0
            self._init_optimizer_states_with_dummy_values()
            for group, lr in zip(self.optimizer.param_groups, learning_rates, strict=True):
                group["lr"] = lr
        return original(self, model_sharded_state_dict, is_loading, *args, **kwargs)

    DistributedOptimizer.sharded_state_dict = sharded_state_dict


def _own_step_per_parameter() -> None:
    """Loading shares one `step` tensor among all parameters; torch's AdamW would advance it once per parameter."""
    original = DistributedOptimizer.load_state_dict
    set_states = DistributedOptimizer._set_main_param_and_optimizer_states

    def load_state_dict(self, state_dict: Any):
        result = original(self, state_dict)
        for state in self.optimizer.state.values():
            if torch.is_tensor(state.get("step")):
                state["step"] = state["step"].clone()
        return result

    @torch.no_grad()  # in fp32 the main parameter is the leaf itself
    def set_main_param_and_optimizer_states(self, model_param: torch.nn.Parameter, tensors: dict[str, Any]):
        group, order = self.model_param_group_index_map[model_param]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
        # What was loaded as it lay in the buffers brings the step of the state that it was loaded over.
        return set_states(self, model_param, {**tensors, "step": state["step"]} if "step" in state else tensors)

    DistributedOptimizer.load_state_dict = load_state_dict
    DistributedOptimizer._set_main_param_and_optimizer_states = set_main_param_and_optimizer_states


def _step_without_parameters() -> None:
    """torch's AdamW knows its step by a parameter's state. A pipeline stage without experts has none of theirs.

    All optimizers of a chain have made the same steps, and `_synchronize_steps` comes before each use of them. What
    rank 0 saves is what every rank loads.
    """
    state_dict = DistributedOptimizer.state_dict

    def distributed_state_dict(self) -> Any:
        if self.optimizer.state:
            return state_dict(self)
        self.optimizer.state["of the chain"] = {"step": torch.tensor(self.step_of_chain)}
        try:
            return state_dict(self)
        finally:
            self.optimizer.state.clear()

    def synchronize_steps(self) -> None:
        states = [state for chained in self.chained_optimizers for state in chained.optimizer.state.values()]
        steps = [float(state["step"]) for state in states if "step" in state]
        for chained in self.chained_optimizers:
            chained.step_of_chain = steps[0] if steps else 0.0

    DistributedOptimizer.state_dict = distributed_state_dict
    ChainedOptimizer._synchronize_steps = synchronize_steps
    for plain in (FP32Optimizer, Float16OptimizerWithFloat16Params):
        plain.sharded_state_dict = _with_common_step(plain.sharded_state_dict)


def _with_common_step(original: Callable) -> Callable:
    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        if not self.optimizer.state:
            result.get("optimizer", result)["state"]["common_step"] = torch.tensor(self.step_of_chain)
        return result

    return sharded_state_dict
