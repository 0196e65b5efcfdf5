"""A model in Hugging Face format for Megatron-Core: what is built of it, and how weights come in and go out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from sppo_megatron.config import Config
from sppo_megatron.hf.architecture import Architecture
from sppo_megatron.hf.export import ExportGroups, ExportPlan, stream_hf_tensors
from sppo_megatron.hf.hf_checkpoint import HFTensors
from sppo_megatron.hf.load import load_parameters
from sppo_megatron.hf.mapping import parameter_layouts
from sppo_megatron.hf.tensor_layouts import TensorLayout
from sppo_megatron.policy.initialize import local_device
from sppo_megatron.policy.model.build import build_chunks, named_parameters, transformer_config
from sppo_megatron.policy.model.shared_prompts import check_shared_prompts


@dataclass(frozen=True)
class MappedModel:
    """tensors: the weights to start from, read when asked for. chunks: of this pipeline stage, wrapped or not."""

    architecture: Architecture
    tensors: HFTensors
    make_vocab_size_divisible_by: int
    _plan: list[ExportPlan] = field(default_factory=list, compare=False, repr=False)  # made by the first export

    @property
    def vocab_size(self) -> int:
        """The true size, without padding."""
        return self.architecture.vocab_size

    def padded_vocab_size(self, groups: ProcessGroupCollection) -> int:
        return self.architecture.padded_vocab_size(self.make_vocab_size_divisible_by, groups.tp.size())

    def layout_sizes(self) -> dict[str, int | None]:
        """What parallel sizes must divide: the arguments of `validation.check_layout`."""
        return self.architecture.layout_sizes()

    def description(self) -> dict[str, Any]:
        """What makes it this model and no other, as JSON values: a checkpoint of it must agree."""
        values = asdict(self.architecture)
        return {name: value for name, value in values.items() if not isinstance(value, Tensor)}

    @property
    def longest_sequence(self) -> int | None:
        """Tokens beyond which the model would not be transformers'; None without an end."""
        return self.architecture.longest_sequence

    def build(self, run: Config, groups: ProcessGroupCollection) -> tuple[TransformerConfig, list[nn.Module]]:
        """This pipeline stage's chunks, with uninitialized weights. Raises ValueError for what can't be had."""
        config = transformer_config(self.architecture, run.model, run.parallelism, run.precision)
        shares_prompts = bool(run.train.shared_prompts)
        if shares_prompts:
            check_shared_prompts(config)
        vocab_size = self.padded_vocab_size(groups)
        return config, build_chunks(self.architecture, config, vocab_size, groups, shares_prompts=shares_prompts)

    def load_weights(self, chunks: list[nn.Module], groups: ProcessGroupCollection) -> None:
        """Fills the chunks. Raises ValueError that names what is missing, unexpected or of a wrong shape."""
        load_parameters(
            named_parameters(chunks),
            self._layouts(groups),
            self.tensors,
            tp_rank=groups.tp.rank(),
            tp_size=groups.tp.size(),
            expert_tp=(groups.expt_tp.rank(), groups.expt_tp.size()),
        )

    def export_weights(self, chunks: list[nn.Module], groups: ProcessGroupCollection) -> Iterator[tuple[str, Tensor]]:
        """Whole tensors by Hugging Face names, each the caller's own. Every rank iterates to the end."""
        parameters = dict(named_parameters(chunks))
        if not self._plan:
            over = ExportGroups(groups.tp, groups.pp, groups.ep, groups.expt_tp)
            self._plan.append(ExportPlan(parameters, self._layouts(groups), over))
        return stream_hf_tensors(parameters, self._plan[0], local_device())

    def _layouts(self, groups: ProcessGroupCollection) -> Mapping[str, TensorLayout]:
        return parameter_layouts(self.architecture, self.padded_vocab_size(groups))
