"""A layout's sizes as numbers: what remains for data parallelism, and which ranks a group spreads over."""

from __future__ import annotations

from dataclasses import dataclass

from sppo_megatron.config import ParallelismConfig


@dataclass(frozen=True)
class ParallelSizes:
    """tp, pp, cp, dp, ep: tensor, pipeline, context, data, expert. etp, edp: the experts' own tensor and data sizes.

    vpp: model chunks of a stage, 1 without interleaving.
    """

    world: int
    tp: int
    pp: int
    vpp: int
    cp: int
    ep: int
    etp: int
    sequence_parallel: bool

    @classmethod
    def of(cls, parallelism: ParallelismConfig, world_size: int) -> ParallelSizes:
        """The sizes of a layout that `validation.check_processes` accepts."""
        p = parallelism
        return cls(
            world=world_size,
            tp=p.tensor_model_parallel_size,
            pp=p.pipeline_model_parallel_size,
            vpp=p.virtual_pipeline_model_parallel_size or 1,
            cp=p.context_parallel_size,
            ep=p.expert_model_parallel_size,
            etp=p.expert_tensor_parallel_size or p.tensor_model_parallel_size,
            sequence_parallel=p.sequence_parallel,
        )

    @property
    def dp(self) -> int:
        return self.world // (self.tp * self.pp * self.cp)

    @property
    def edp(self) -> int:
        return self.world // (self.etp * self.ep * self.pp)

    @property
    def sequence_shards(self) -> int:
        """Ranks that a sequence is cut over outside of attention and MLP, beside context parallelism."""
        return self.tp if self.sequence_parallel else 1

    @property
    def spans(self) -> dict[str, int]:
        """Consecutive ranks that a group of each kind spreads over, in Megatron's order tp-cp-ep-dp-pp."""
        stage = self.world // self.pp
        return {
            "tp": self.tp,
            "cp": self.tp * self.cp,
            "dp": stage,
            "ep": self.etp * self.ep,
            "edp": stage,
            "pp": self.world,
        }
