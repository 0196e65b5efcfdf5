"""One way to run one model on one cluster: what every estimate is a function of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from sppo_megatron.config import Config
from sppo_megatron.hf.architecture import Architecture
from sppo_megatron.rollout.registry import engine_kind, stored_kind
from sppo_planner.activations import SavedBytes, Tokens
from sppo_planner.cluster import Assumptions, Cluster
from sppo_planner.parallel_sizes import ParallelSizes
from sppo_planner.parameters import ParameterTable
from sppo_planner.stage_activations import Recomputation
from sppo_planner.workload import Workload

ITEMSIZE = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Job:
    """config: with a layout that fits the cluster and the model; see `search.find_problems`."""

    table: ParameterTable
    config: Config
    cluster: Cluster
    assumptions: Assumptions

    @property
    def architecture(self) -> Architecture:
        return self.table.architecture

    @cached_property
    def sizes(self) -> ParallelSizes:
        return ParallelSizes.of(self.config.parallelism, self.cluster.gpus)

    @cached_property
    def workload(self) -> Workload:
        return Workload.of(self.config, self.assumptions)

    @property
    def trainer_samples(self) -> bool:
        """Whether responses are sampled by the very model that is trained."""
        kind = engine_kind(self.config)
        return stored_kind(self.config) is None and kind.in_ranks and not kind.has_own_weights

    @property
    def engine_beside(self) -> bool:
        """Whether an engine with weights of its own samples on the training GPUs."""
        kind = engine_kind(self.config)
        return kind.in_ranks and kind.has_own_weights

    @property
    def itemsize(self) -> int:
        """Bytes of a parameter."""
        return ITEMSIZE[self.config.precision.dtype]

    @property
    def fp8(self) -> bool:
        return self.config.precision.fp8 is not None

    @property
    def saved(self) -> SavedBytes:
        """On GPUs, with Transformer Engine's layers."""
        return SavedBytes.of(self.itemsize, transformer_engine=True, fp8=self.fp8)

    @property
    def tokens(self) -> Tokens:
        """Of the largest micro-batch on one context-parallel rank."""
        count = self.workload.micro_batch // self.sizes.cp
        return Tokens(count, count // self.workload.rows)

    @property
    def response_tokens(self) -> int:
        """Of the largest micro-batch on one context-parallel rank."""
        return self.tokens.count * self.workload.response // self.workload.longest

    @property
    def micro_batches(self) -> int:
        """Of an optimizer step on one replica."""
        return self.workload.micro_batches(self.sizes, self.workload.minibatch)

    @property
    def recompute(self) -> Recomputation:
        model = self.config.model
        return Recomputation(model.recompute_granularity, model.recompute_method, model.recompute_num_layers)

    @property
    def vocabulary_shard(self) -> int:
        """Rows of the LM head on one tensor-parallel rank."""
        return self.table.padded_vocab_size(self.sizes.tp) // self.sizes.tp

    @property
    def active_elements(self) -> float:
        """Elements of the layers' matrices that a token is multiplied with."""
        return self.table.active_matrix_elements

    @property
    def layers_of_stage(self) -> float:
        return self.architecture.num_layers / self.sizes.pp
