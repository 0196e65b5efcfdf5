"""GiB on one GPU: what stays, and what comes and goes in training, in the log-prob pass and in generation."""

from __future__ import annotations

from dataclasses import dataclass, field

from sppo_megatron.objective.registry import objective_class
from sppo_megatron.parallel.logit_tiles import choose_tiles
from sppo_megatron.rollout.registry import engine_kind
from sppo_planner.arithmetic import Part, Term, term
from sppo_planner.cluster import GIB
from sppo_planner.job import Job
from sppo_planner.model_state import Rank, model_state
from sppo_planner.stage_activations import head_part, stage_activations


@dataclass(frozen=True)
class Memory:
    """Bytes on a GPU of one pipeline stage.

    resident: all the time. moments: named peaks, of which one at a time is added; they are the sums of their parts.
    """

    stage: int
    resident: tuple[Part, ...]
    moments: dict[str, tuple[Part, ...]] = field(default_factory=dict)

    @property
    def peak(self) -> str:
        """The moment that needs most."""
        return max(self.moments, key=self.of_moment)

    @property
    def total(self) -> float:
        return sum(part.value for part in self.resident) + self.of_moment(self.peak)

    def of_moment(self, moment: str) -> float:
        return sum(part.value for part in self.moments[moment])

    def part(self, name: str) -> float:
        """Bytes of all parts of this name, at the moment when they are most."""
        moments = [sum(p.value for p in parts if p.name == name) for parts in self.moments.values()]
        return sum(p.value for p in self.resident if p.name == name) + max(moments)


def memory(job: Job) -> Memory:
    """Of the pipeline stage that needs most: the first, with most micro-batches in flight, or the last, with the head.

    Data-parallel rank 0 is meant; others differ by the padding of buffers.
    """
    stages = {0, job.sizes.pp - 1}
    return max((memory_of_stage(job, stage) for stage in sorted(stages)), key=lambda found: found.total)


def memory_of_stage(job: Job, stage: int) -> Memory:
    state = model_state(
        job.table,
        job.sizes,
        Rank(stage),
        itemsize=job.itemsize,
        distributed_optimizer=job.config.optimizer.use_distributed_optimizer,
        overlap_grad_reduce=job.config.parallelism.overlap_grad_reduce,
    )
    reserve = Part(
        "reserve", (term("set aside", GiB=job.assumptions.reserve_gib, bytes=GIB),), "CUDA context, NCCL, fragmentation"
    )
    resident = [state.weights, state.gradients, state.optimizer, reserve]
    if job.fp8 and not job.config.precision.fp8_param:
        resident.insert(1, _fp8_copies(state.weights))
    moments = _training_moments(job, stage) | {
        "old log-probs": (_log_prob_tiles(job),),
        "generation": (_generation(job),),
    }
    return Memory(stage, tuple(resident), moments)


def _fp8_copies(weights: Part) -> Part:
    terms = [
        Term(each.what, (*each.factors[:-1], (2, "copies of one byte")))
        for each in weights.terms
        if "decoder.layers" in each.what and ".linear_" in each.what and each.what.endswith(".weight")
    ]
    return Part("FP8 weights", tuple(terms), "assumed: by rows and by columns, kept over the micro-batches of a step")


def _training_moments(job: Job, stage: int) -> dict[str, tuple[Part, ...]]:
    activations = stage_activations(
        job.architecture,
        job.sizes,
        stage,
        micro_batches=job.micro_batches,
        tokens=job.tokens,
        saved=job.saved,
        recompute=job.recompute,
        expert_imbalance=job.assumptions.expert_imbalance,
    )
    moments: dict[str, tuple[Part, ...]] = {"backward": (activations.held, activations.recomputed, _workspace(job))}
    if stage == job.sizes.pp - 1:
        head = head_part(
            job.architecture,
            job.sizes,
            tokens=job.tokens,
            response_tokens=job.response_tokens,
            padded_vocab_size=job.vocabulary_shard * job.sizes.tp,
            saved=job.saved,
            fused=_fused(job),
        )
        moments["loss"] = (activations.held, head, _logits(job))
    return moments


def _fused(job: Job) -> bool:
    return job.config.train.fused_loss and objective_class(vars(job.config.objective)).is_regression


def _logits(job: Job) -> Part:
    """What the loss head keeps of the logits, whole sequences within train.logits_budget_mib, or else one tile."""
    if not _fused(job):
        return _log_prob_tiles(job)
    whole = term("logits, fp32", response_tokens=job.response_tokens, columns=job.vocabulary_shard, bytes=4)
    budget = term("train.logits_budget_mib", MiB=job.config.train.logits_budget_mib, bytes=2**20)
    return Part("logits", (min(whole, budget, key=lambda each: each.value),), "policy/lm_head.py")


def _log_prob_tiles(job: Job) -> Part:
    rows, columns = choose_tiles(
        job.response_tokens, job.vocabulary_shard, "cuda", job.config.train.log_prob_chunk_size
    )
    return Part("logits", (term("tiles, fp32", tiles=2, tokens=rows, columns=columns, bytes=4),), "one and its scratch")


def _workspace(job: Job) -> Part:
    """Gradients that live at once in the MLP's backward pass, and sequences gathered for it."""
    a, sizes, tokens = job.architecture, job.sizes, job.tokens.count
    terms = [
        term("gathered hidden states and their gradient", tokens=2 * tokens, hidden=a.hidden_size, bytes=job.itemsize)
    ]
    if a.mixture is None or not all(a.mixture.layers):
        mlp = term("gradients of the MLP", tokens=tokens, elements=3 * a.ffn_hidden_size, bytes=job.itemsize)
        terms.append(mlp.over(tp=sizes.tp))
    if a.mixture is not None:
        routed = term(
            "gradients of dispatched tokens",
            tokens=tokens // sizes.sequence_shards * a.mixture.num_experts_per_token,
            elements=2 * a.hidden_size + 3 * a.mixture.ffn_hidden_size,
            bytes=job.itemsize,
        )
        terms.append(routed)
    return Part("workspace", tuple(terms), "assumed")


def _generation(job: Job) -> Part:
    """The trainer's own key-value cache, or vLLM's share while it is awake; none if others generate."""
    rollout, a, sizes = job.config.rollout, job.architecture, job.sizes
    share_of_engine = engine_kind(job.config).device_share(job.config)
    if share_of_engine is not None:
        share = term("vLLM", share=share_of_engine, GiB=job.cluster.gpu.memory_gib, bytes=GIB)
        return Part("generation", (share,), "rollout.vllm.gpu_memory_utilization; asleep while the trainer works")
    if not job.trainer_samples:
        return Part("generation", ())
    cache = term(
        "keys and values",
        sequences=min(rollout.batch_size, -(-job.workload.sequences // sizes.dp)),
        tokens=job.workload.longest,
        layers=job.layers_of_stage,
        elements=2 * max(a.num_query_groups // sizes.tp, 1) * a.head_dim,
        bytes=job.itemsize,
    )
    return Part("generation", (cache,), "Megatron's static key-value cache, rollout.batch_size sequences")
