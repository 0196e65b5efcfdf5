"""Which layouts are compared, at how many ranks, on which model, with which objective."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tests.distributed.layouts.models import BIASED_EXPERTS, KINDS, MIXTURES, TEXT_PARTS, has_experts
from tests.distributed.layouts.reference import Settings

TP, PP, VPP = (f"parallelism.{name}_model_parallel_size" for name in ("tensor", "pipeline", "virtual_pipeline"))
CP = "parallelism.context_parallel_size"
EP, ETP = "parallelism.expert_model_parallel_size", "parallelism.expert_tensor_parallel_size"
SP = "parallelism.sequence_parallel"
PACKED = "train.max_tokens_per_micro_batch"
ROWS = "train.micro_batch_size"
SHARED = {"train.shared_prompts": "true"}
UNFUSED = {"train.fused_loss": "false"}  # log-probs, then the loss
FEW_LOGITS = {"train.logits_budget_mib": 0.002}  # 13 tokens: groups of sequences, and some too long to be kept
PLAIN_ADAM = {"optimizer.use_distributed_optimizer": "false"}
OVERLAPPED = {"parallelism.overlap_grad_reduce": "true", "parallelism.overlap_param_gather": "true"}
RECOMPUTED = {"model.recompute_granularity": "full"}

PLAIN = Settings()
LENGTH_WEIGHTED = Settings(length_weight=True, baseline="mean", epochs=2, minibatch_size=6)
SCHEDULE = Settings(lr_warmup_steps=2, lr_decay=True, minibatch_size=4)
KIMI = Settings(kimi_scale=True, baseline="log_partition", eta=4.0, minibatch_size=4)
PAIRS = {
    kind: Settings(**{"pairwise": kind, "minibatch_size": 4} | settings)
    for kind, settings in {
        "sppo": {"win_rate": True},
        "sppo_single": {},
        "sppo_hard": {},
        "dpo": {"beta": 0.5},
        "spin": {"beta": 0.3, "minibatch_size": 6},
        "ipo": {"beta": 0.5},
        "rebel": {},
        "inpo": {"eta": 0.4, "ref_coef": 0.5, "epochs": 2},
    }.items()
}
GRPO = Settings(name="grpo", clip=0.02, kl_coef=0.1, epochs=2, minibatch_size=6)
DAPO = Settings(name="grpo", clip=0.05, divide_by_std=False, token_mean=True, epochs=2, minibatch_size=5)
GVPO = Settings(name="gvpo", eta=5.0, epochs=2, minibatch_size=8)
MNPO = Settings(name="mnpo", eta=0.4, ref_coef=0.2, opponent=("qwen2-tied-earlier", 0.5), epochs=2, minibatch_size=4)
SFT = Settings(name="sft", temperature=1.0, token_mean=True, epochs=2, minibatch_size=5)
PAPERS = {"grpo": GRPO, "dapo": DAPO, "gvpo": GVPO, "mnpo": MNPO, "sft": SFT}
BALANCED = Settings(aux_loss_coeff=5.0)  # most of the gradient
BIASED = Settings(iterations=1, expert_bias_rate=0.05)
BALANCED_EACH = Settings(aux_loss_coeff=5.0, aux_of_each=True)

# One micro-batch a mini-batch: as many rows, or packed. The rows' padding must not count.
WHOLE = {ROWS: 5}


@dataclass(frozen=True)
class Case:
    name: str
    world_size: int
    overrides: dict[str, object] = field(default_factory=dict)
    model: str = "qwen2-tied"
    settings: Settings = PLAIN

    def arguments(self, folder: Path) -> list[str]:
        """The command's, for a replay of folder/rollouts.jsonl by the model folder/MODEL into folder/out/NAME."""
        s = self.settings
        values = {
            "model.hf_path": folder / self.model,
            "model.make_vocab_size_divisible_by": 4,
            "precision.dtype": "fp32",
            "rollout.engine": "replay",
            "rollout.path": folder / "rollouts.jsonl",
            "rollout.temperature": s.temperature,
            "model.moe_aux_loss_coeff": s.aux_loss_coeff,
            "model.moe_expert_bias_update_rate": s.expert_bias_rate,
            "objective.eta": s.eta,
            "objective.baseline": s.baseline,
            "objective.loss_agg_mode": "seq-mean-token-mean" if s.length_weight else "seq-mean-token-sum",
            "objective.loss_scale": "kimi" if s.kimi_scale else "sppo",
            "objective.reward": "win_rate" if s.win_rate else "reward",
            "objective.pairwise": s.pairwise or "null",
            "objective.beta": s.beta or "null",
            "objective.ref_coef": s.ref_coef,
            "objective.name": s.name,
            **_keys_of_papers(s, folder),
            "train.iterations": s.iterations,
            "train.prompts_per_iteration": s.groups_per_iteration,
            "train.epochs_per_iteration": s.epochs,
            "train.minibatch_size": s.minibatch_size,
            "train.shuffle": "false",
            "optimizer.lr": s.lr,
            "optimizer.min_lr": s.lr / 10 if s.lr_decay else 0.0,
            "optimizer.lr_warmup_steps": s.lr_warmup_steps,
            "optimizer.lr_decay_style": "linear" if s.lr_decay else "constant",
            "optimizer.weight_decay": s.weight_decay,
            "optimizer.adam_eps": s.adam_eps,
            "optimizer.clip_grad": s.clip_grad,
            "logger.tensorboard": "false",
            "logger.progress": "false",
            "output_dir": folder / "out" / self.name,
        }
        return [f"{key}={value}" for key, value in (values | self.overrides).items()]


def _keys_of_papers(s: Settings, folder: Path) -> dict[str, object]:
    if s.opponent is not None:
        name, share = s.opponent
        return {"objective.opponents": f"[{{path: {folder / name}, weight: {share}}}]"}
    if s.name == "sft":
        return {"objective.token_agg": "token-mean" if s.token_mean else "sequence-mean"}
    if s.name != "grpo":
        return {}
    return {
        "objective.clip_low": s.clip,
        "objective.clip_high": s.clip,
        "objective.divide_by_std": str(s.divide_by_std).lower(),
        "objective.token_agg": "token-mean" if s.token_mean else "sequence-mean",
        "objective.kl_coef": s.kl_coef,
    }


# Every family goes through these: (ranks, sizes). Mixtures of experts also through those below.
FAMILY_LAYOUTS: dict[str, tuple[int, dict[str, object]]] = {
    "one": (1, {ROWS: 3}),
    "packed": (1, {PACKED: 48}),
    "recompute": (1, {ROWS: 4, **RECOMPUTED}),
    "unfused": (1, {PACKED: 64, **UNFUSED}),
    "tp2-sp": (2, {TP: 2, SP: "true", PACKED: 64}),
    "pp2": (2, {PP: 2, ROWS: 4}),
    "cp2": (2, {CP: 2, PACKED: 64}),
    "dp2": (2, {ROWS: 3}),
}
MIXTURE_LAYOUTS: dict[str, tuple[int, dict[str, object]]] = {
    "ep2": (2, {EP: 2, PACKED: 48}),
    "tp2-ep2": (2, {TP: 2, SP: "true", EP: 2, ETP: 1, ROWS: 3}),
}
WHOLE_EXPERTS = {ETP: 1}
FAMILY = Settings(iterations=1)


def _family_case(layout: str, kind: str) -> Case:
    ranks, sizes = (FAMILY_LAYOUTS | MIXTURE_LAYOUTS)[layout]
    whole = WHOLE_EXPERTS if kind in BIASED_EXPERTS and TP in sizes else {}
    return Case(f"{layout}-{kind}", ranks, sizes | whole, kind, FAMILY)


FAMILY_CASES = [
    _family_case(layout, kind)
    for kind in KINDS
    for layout in (FAMILY_LAYOUTS | (MIXTURE_LAYOUTS if kind in MIXTURES else {}))
]
# Of families with many cases below, the layouts that are in none of them.
FAMILY_CASES += [
    _family_case(layout, kind)
    for kind, others in {
        "llama": "packed recompute unfused tp2-sp cp2 dp2",
        "qwen2-moe": "one recompute unfused cp2 tp2-ep2",
        "qwen3-moe": "packed unfused pp2 dp2",
    }.items()
    for layout in others.split()
]

FAMILY_CASES += [
    _family_case(layout, kind)
    for kind in TEXT_PARTS
    for layout in ("packed", "tp2-sp", "pp2", *(("ep2",) if has_experts(kind) else ()))
]

CASES = [
    *FAMILY_CASES,
    Case("one-process", 1),
    Case("one-process-rows-4", 1, {ROWS: 4}),
    Case("one-process-packed", 1, {PACKED: 48}),
    Case("one-process-plain-adam", 1, PLAIN_ADAM),
    Case("one-process-full-recompute", 1, {ROWS: 3, **RECOMPUTED}),
    Case("one-process-length-weighted", 1, {ROWS: 2}, settings=LENGTH_WEIGHTED),
    Case("one-process-schedule", 1, {ROWS: 4}, settings=SCHEDULE),
    Case("one-process-kimi", 1, {PACKED: 64}, settings=KIMI),
    Case("one-process-qwen2-untied", 1, {ROWS: 2}, "qwen2"),
    Case("one-process-qwen3", 1, {ROWS: 2}, "qwen3"),
    Case("one-process-llama", 1, {ROWS: 2}, "llama"),
    Case("one-process-mistral", 1, {ROWS: 2}, "mistral"),
    Case("one-process-mixtral", 1, {ROWS: 2}, "mixtral"),
    Case("one-process-qwen2-moe", 1, {PACKED: 48}, "qwen2-moe"),
    Case("one-process-qwen3-moe", 1, {ROWS: 3}, "qwen3-moe"),
    Case("one-process-unfused", 1, {ROWS: 3, **UNFUSED}),
    Case("one-process-unfused-kimi-packed", 1, {PACKED: 64, **UNFUSED}, settings=KIMI),
    Case("one-process-unfused-length-weighted", 1, {ROWS: 2, **UNFUSED}, settings=LENGTH_WEIGHTED),
    Case("one-process-few-logits", 1, {ROWS: 4, **FEW_LOGITS}),
    Case("one-process-few-logits-kimi-packed", 1, {PACKED: 64, **FEW_LOGITS}, settings=KIMI),
    Case("one-process-chunks-of-3", 1, {PACKED: 64, "train.log_prob_chunk_size": 3}),
    *(Case(f"one-process-{kind}", 1, {ROWS: 4}, settings=settings) for kind, settings in PAIRS.items()),
    Case("tp2-sp-sppo-pairs-packed", 2, {TP: 2, SP: "true", PACKED: 64}, settings=PAIRS["sppo"]),
    Case("cp2-spin-packed", 2, {CP: 2, PACKED: 64}, settings=PAIRS["spin"]),
    Case("pp2-vpp2-dpo", 2, {PP: 2, VPP: 2, ROWS: 2}, settings=PAIRS["dpo"]),
    Case("pp2-inpo", 2, {PP: 2, ROWS: 2}, settings=PAIRS["inpo"]),
    Case("dp2-overlapped-inpo", 2, {**OVERLAPPED, ROWS: 2}, settings=PAIRS["inpo"]),
    Case("tp2-pp2-vpp2-inpo", 4, {TP: 2, PP: 2, VPP: 2, ROWS: 2}, settings=PAIRS["inpo"]),
    Case("ep2-dp2-rebel", 4, {EP: 2, ROWS: 2}, "mixtral", settings=PAIRS["rebel"]),
    *(Case(f"one-process-{name}", 1, {ROWS: 4}, settings=settings) for name, settings in PAPERS.items()),
    *(
        Case(f"{layout}-{name}", 2, sizes, settings=settings)
        for layout, sizes in {
            "tp2-sp-packed": {TP: 2, SP: "true", PACKED: 64},
            "pp2": {PP: 2, ROWS: 4},
            "cp2-packed": {CP: 2, PACKED: 64},
            "dp2-packed": {PACKED: 48},
        }.items()
        for name, settings in PAPERS.items()
    ),
    Case("one-process-shared", 1, {PACKED: 64, **SHARED}),
    Case("one-process-shared-unfused", 1, {PACKED: 48, **SHARED, **UNFUSED}, "qwen3"),
    Case("one-process-shared-recompute", 1, {PACKED: 64, **SHARED, **RECOMPUTED}, "qwen3-moe"),
    Case("one-process-shared-auto", 1, {PACKED: 100, "train.shared_prompts": "auto"}, settings=LENGTH_WEIGHTED),
    Case("one-process-shared-spin", 1, {PACKED: 64, **SHARED}, settings=PAIRS["spin"]),
    Case("one-process-shared-gvpo", 1, {PACKED: 64, **SHARED}, settings=PAPERS["gvpo"]),
    *(
        Case(f"one-process-shared-{kind}", 1, {PACKED: 64, **SHARED}, kind, FAMILY)
        for kind in KINDS
        if kind != "gpt-oss"
    ),
    Case("tp2-sp-shared", 2, {TP: 2, SP: "true", PACKED: 64, **SHARED}),
    Case("tp2-sp-shared-deepseek-v3", 2, {TP: 2, SP: "true", PACKED: 64, **SHARED}, "deepseek-v3", FAMILY),
    Case("pp2-vpp2-shared", 2, {PP: 2, VPP: 2, PACKED: 48, **SHARED}),
    Case("pp2-shared-gemma3", 2, {PP: 2, PACKED: 64, **SHARED}, "gemma3", FAMILY),
    Case("dp2-shared", 2, {PACKED: 48, **SHARED}),
    Case("dp2-shared-overlapped-grpo", 2, {PACKED: 64, **SHARED, **OVERLAPPED}, settings=GRPO),
    Case("ep2-shared", 2, {EP: 2, PACKED: 48, **SHARED}, "qwen3-moe"),
    Case("tp2-unfused", 2, {TP: 2, ROWS: 2, **UNFUSED}),
    Case("tp2-sp-few-logits", 2, {TP: 2, SP: "true", PACKED: 48, **FEW_LOGITS}),
    Case("cp2-packed-unfused", 2, {CP: 2, PACKED: 64, **UNFUSED}),
    Case("cp2-packed-few-logits", 2, {CP: 2, PACKED: 64, **FEW_LOGITS}),
    Case("pp2-unfused", 2, {PP: 2, ROWS: 2, **UNFUSED}),
    Case("dp2-overlapped-unfused", 2, {**OVERLAPPED, **UNFUSED}),
    Case("tp2-cp2-few-logits", 4, {TP: 2, CP: 2, ROWS: 2, **FEW_LOGITS}),
    Case("tp2", 2, {TP: 2, ROWS: 2}),
    Case("tp2-sp", 2, {TP: 2, SP: "true", ROWS: 2}),
    Case("tp2-sp-packed", 2, {TP: 2, SP: "true", PACKED: 48}),
    Case("tp2-sp-qwen3", 2, {TP: 2, SP: "true", ROWS: 2}, "qwen3"),
    Case("tp2-qwen2-untied", 2, {TP: 2, ROWS: 3}, "qwen2"),
    Case("pp2", 2, {PP: 2, ROWS: 2}),
    Case("pp2-packed", 2, {PP: 2, PACKED: 48}),
    Case("pp2-llama", 2, {PP: 2, ROWS: 2}, "llama"),
    Case("pp2-vpp2", 2, {PP: 2, VPP: 2, ROWS: 2}),
    Case("pp2-vpp2-packed", 2, {PP: 2, VPP: 2, PACKED: 48}),
    Case("cp2", 2, {CP: 2, ROWS: 2}),
    Case("cp2-packed", 2, {CP: 2, PACKED: 64}),
    Case("cp2-packed-kimi", 2, {CP: 2, PACKED: 64}, settings=KIMI),
    Case("dp2-distributed-optimizer", 2, {ROWS: 2}),
    Case("dp2-plain-adam", 2, {ROWS: 1, **PLAIN_ADAM}),
    Case("dp2-packed-length-weighted", 2, {PACKED: 48}, settings=LENGTH_WEIGHTED),
    Case("dp2-overlapped", 2, OVERLAPPED),
    Case("dp2-overlapped-qwen2-untied", 2, OVERLAPPED, "qwen2"),
    Case("tp4", 4, {TP: 4, ROWS: 2}),
    Case("tp2-pp2", 4, {TP: 2, PP: 2, ROWS: 2}),
    Case("tp2-sp-pp2-vpp2-packed", 4, {TP: 2, SP: "true", PP: 2, VPP: 2, PACKED: 48}),
    Case("tp2-cp2", 4, {TP: 2, CP: 2, ROWS: 2}),
    Case("tp2-sp-cp2-packed", 4, {TP: 2, SP: "true", CP: 2, PACKED: 64}, "qwen3"),
    Case("pp2-cp2", 4, {PP: 2, CP: 2, ROWS: 2}),
    Case("pp2-dp2", 4, {PP: 2, ROWS: 1}),
    Case("cp2-dp2", 4, {CP: 2, PACKED: 64}),
    Case("pp4", 4, {PP: 4, ROWS: 2}),
    Case("ep2-mixtral", 2, {EP: 2, ROWS: 2}, "mixtral"),
    Case("ep2-qwen2-moe-packed", 2, {EP: 2, PACKED: 48}, "qwen2-moe"),
    Case("ep2-qwen3-moe-plain-adam", 2, {EP: 2, ROWS: 1, **PLAIN_ADAM}, "qwen3-moe"),
    Case("ep2-qwen3-moe-overlapped", 2, {EP: 2, ROWS: 2, **OVERLAPPED}, "qwen3-moe"),
    Case("dp2-qwen2-moe", 2, {ROWS: 2}, "qwen2-moe"),
    Case("tp2-sp-qwen2-moe", 2, {TP: 2, SP: "true", ROWS: 2}, "qwen2-moe"),
    Case("tp2-sp-ep2-etp1-qwen3-moe", 2, {TP: 2, SP: "true", EP: 2, ETP: 1, PACKED: 48}, "qwen3-moe"),
    Case("pp2-qwen2-moe", 2, {PP: 2, ROWS: 2}, "qwen2-moe"),
    Case("pp2-vpp2-qwen2-moe", 2, {PP: 2, VPP: 2, ROWS: 2}, "qwen2-moe"),
    Case("cp2-ep2-qwen3-moe", 2, {CP: 2, EP: 2, PACKED: 64}, "qwen3-moe"),
    Case("ep4-qwen3-moe", 4, {EP: 4, ROWS: 2}, "qwen3-moe"),
    Case("ep2-dp2-mixtral", 4, {EP: 2, ROWS: 1}, "mixtral"),
    Case("tp2-sp-ep2-qwen2-moe", 4, {TP: 2, SP: "true", EP: 2, ROWS: 2}, "qwen2-moe"),
    Case("tp2-sp-ep4-etp1-mixtral", 4, {TP: 2, SP: "true", EP: 4, ETP: 1, ROWS: 2}, "mixtral"),
    Case("pp2-ep2-qwen2-moe-packed", 4, {PP: 2, EP: 2, PACKED: 48}, "qwen2-moe"),
    Case("one-process-biased-glm4-moe", 1, {ROWS: 3, **RECOMPUTED}, "glm4-moe", BIASED),
    Case("tp2-sp-biased-glm4-moe", 2, {TP: 2, SP: "true", PACKED: 64}, "glm4-moe", BIASED),
    Case("pp2-biased-deepseek-v3", 2, {PP: 2, ROWS: 2}, "deepseek-v3", BIASED),
    Case("ep2-biased-deepseek-v3", 2, {EP: 2, ROWS: 3}, "deepseek-v3", BIASED),
    Case("one-process-balanced", 1, WHOLE, "qwen3-moe", BALANCED),
    Case("one-process-balanced-packed", 1, {PACKED: 400}, "qwen2-moe", BALANCED),
    Case("one-process-balanced-recomputed", 1, {**WHOLE, **RECOMPUTED}, "qwen3-moe", BALANCED),
    Case("tp2-sp-balanced", 2, {TP: 2, SP: "true", **WHOLE}, "qwen3-moe", BALANCED),
    Case("ep2-balanced-with-empty-micro-batches", 2, {EP: 2, ROWS: 1}, "qwen3-moe", BALANCED_EACH),
    Case("cp2-balanced", 2, {CP: 2, PACKED: 400}, "qwen3-moe", BALANCED),
    Case("tp2-sp-pp2-balanced", 4, {TP: 2, SP: "true", PP: 2, **WHOLE}, "qwen3-moe", BALANCED),
]
