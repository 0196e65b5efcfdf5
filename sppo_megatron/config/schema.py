"""What is configured: one dataclass per Hydra group, checked by `validate` before anything is built.

Names are Megatron's where Megatron has one. `None` is written `null` in YAML and on the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MISSING = "???"  # OmegaConf's marker for "must be given"


@dataclass
class ModelConfig:
    """hf_path: local folder or hub id with `config.json` (and weights where init=hf). init: hf | random.

    The vocabulary is padded to a multiple of make_vocab_size_divisible_by × tensor_model_parallel_size.
    recompute_granularity: null | selective | full (Megatron's fields of the same names).
    moe_aux_loss_coeff: weight of the load-balancing loss of a mixture of experts, averaged over micro-batches and added
    to SPPO's; null = the Hugging Face config's router_aux_loss_coef. At 0 the loss is SPPO's alone, exact in every
    layout; the balance is that of one micro-batch, so above 0 the result depends on how the mini-batch is cut.
    """

    hf_path: str = MISSING
    init: str = "hf"
    make_vocab_size_divisible_by: int = 128
    recompute_granularity: str | None = None
    recompute_method: str = "uniform"
    recompute_num_layers: int = 1
    moe_aux_loss_coeff: float | None = 0.0


@dataclass
class ParallelismConfig:
    """Megatron-Core's parallel sizes. The data-parallel size is what remains of the world."""

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    virtual_pipeline_model_parallel_size: int | None = None
    context_parallel_size: int = 1
    expert_model_parallel_size: int = 1
    expert_tensor_parallel_size: int | None = None
    sequence_parallel: bool = False
    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False
    distributed_timeout_minutes: int = 30


@dataclass
class PrecisionConfig:
    """dtype: fp32 | bf16 | fp16, of parameters and activations; fp16 has a dynamic loss scale from initial_loss_scale.

    fp8: null | hybrid (gradients in e5m2) | e4m3: the layers' matrix products, by Transformer Engine. LM head,
    embedding and log-probs stay in dtype and fp32. fp8_recipe: delayed | tensorwise | blockwise | mxfp8.
    fp8_param: weights are stored and gathered in FP8, too; the optimizer keeps them in fp32.
    fp8_margin, fp8_amax_history_len, fp8_amax_compute_algo (most_recent | max): of the delayed recipe alone.
    first_last_layers_bf16: the first num_layers_at_start_in_bf16 and the last num_layers_at_end_in_bf16 layers stay so.
    fp8_probe_samples: responses of each iteration whose log-probs are computed without FP8, too, for comparison.
    fp8_max_log_ratio_diff: nats a response, the mean difference above which the run stops; null = it is only logged.
    """

    dtype: str = "bf16"
    initial_loss_scale: float = 65536.0
    fp8: str | None = None
    fp8_recipe: str = "blockwise"
    fp8_param: bool = False
    fp8_margin: int = 0
    fp8_amax_history_len: int = 1
    fp8_amax_compute_algo: str = "most_recent"
    first_last_layers_bf16: bool = False
    num_layers_at_start_in_bf16: int = 1
    num_layers_at_end_in_bf16: int = 1
    fp8_probe_samples: int = 16
    fp8_max_log_ratio_diff: float | None = None


@dataclass
class ObjectiveConfig:
    """Exactly one of eta (SPPO's step size) and tau (Kimi's temperature, τ = 1/η) is given.

    reward: reward | win_rate. baseline: constant (½) | mean | loo_mean | log_partition | loo_log_partition.
    loss_agg_mode: the seed's three names; sequence_weight gives them their clear names (none | length | max_length).
    pairwise: null for the regression family, else a kind of `objective.pairwise_loss`. beta is for dpo, spin and ipo;
    for inpo, eta is the paper's (an inverse step size) and ref_coef its τ/η in [0, 1], the share of the pull towards
    the policy that the run started from; above 0 its weights are kept on the host.
    target_clip: bound on |δ| in nats. importance_weight: null | sequence | token, truncated at importance_cap.
    length_reward_weight: weight of Kimi's length reward, added to the reward.
    """

    eta: float | None = 1.0
    tau: float | None = None
    reward: str = "reward"
    win_rate_estimator: str = "include_self"
    baseline: str = "constant"
    loss_agg_mode: str = "seq-mean-token-sum"
    sequence_weight: str | None = None
    loss_scale: str = "sppo"
    pairwise: str | None = None
    beta: float | None = None
    ref_coef: float = 0.0
    target_clip: float | None = None
    importance_weight: str | None = None
    importance_cap: float = 2.0
    length_reward_weight: float = 0.0

    def sequences_of_group(self, num_responses: int) -> int:
        """How many sequences a group of so many responses gives to an epoch, at most: pairs are two."""
        if self.pairwise is None:
            return num_responses
        return 2 * num_responses if self.pairwise == "spin" else 2


@dataclass
class JudgeConfig:
    """A pairwise judge behind an OpenAI-compatible endpoint (reward.kind=judge).

    urls: http://host:port of each server. model: the name they serve, null = the only one. api_key_env: environment
    variable that holds the API key, which is written nowhere. template: file with {prompt}, {first} and {second}, null
    = a built-in question. logprobs: ask for the log-probs of the answer. max_tokens: of the answer. request: more
    fields of the request, by the endpoint's names.
    concurrency: requests under way on one server from each rank. timeout_s: seconds for one. retries: attempts after
    the first, backoff_s seconds apart, doubling. cache_path: file that keeps the answers, null = none.
    """

    urls: list[str] = field(default_factory=list)
    model: str | None = None
    api_key_env: str = "JUDGE_API_KEY"
    template: str | None = None
    logprobs: bool = True
    max_tokens: int = 1
    request: dict[str, Any] = field(default_factory=dict)
    concurrency: int = 32
    timeout_s: float = 60.0
    retries: int = 3
    backoff_s: float = 1.0
    cache_path: str | None = None


@dataclass
class RewardModelConfig:
    """A Hugging Face sequence classifier with one output (reward.kind=reward_model | pairwise_model), on every rank.

    path: local folder or hub id. dtype: fp32 | bf16 | fp16. max_length: tokens; longer ones aren't scored, null = all.
    template: the pairwise model's text, a file with {prompt}, {first} and {second}; null = a built-in one.
    """

    path: str | None = None
    dtype: str = "bf16"
    batch_size: int = 16
    max_length: int | None = None
    template: str | None = None


@dataclass
class RewardConfig:
    """kind: exact_match | numeric | character_share | math_verify | function | reward_model | mixture, and, as
    preferences for objective.reward=win_rate: judge | pairwise_model | pairwise_function. none: every reward is 0,
    for objective.pairwise=spin.

    function: "module:name" for the kinds function, f(prompt, response, answer), and pairwise_function, f(prompt, first,
    second, answer) -> probability in [0, 1] that the first wins.

    A reward that raises, or takes longer than timeout_s seconds, costs its own response `default` and an error record;
    a preference that fails leaves its pair a tie.
    mixture: [{kind: ..., weight: ..., function: ...}, ...], whose weighted rewards are added.
    """

    kind: str = "exact_match"
    function: str | None = None
    timeout_s: float = 10.0
    default: float = 0.0
    num_workers: int = 2
    mixture: list[dict[str, Any]] = field(default_factory=list)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    model: RewardModelConfig = field(default_factory=RewardModelConfig)


@dataclass
class MismatchConfig:
    """The gate between rollout_log_probs and the trainer's old_log_probs of the same tokens, in nats.

    action: what is done about an iteration that exceeds mean_bound (mean |difference| per token) or share_bound (share
    of tokens whose |difference| exceeds token_bound): warn | importance_weight (its responses are weighted as by
    objective.importance_weight, by sequence where that is null) | stop. drop leaves out of every iteration the
    responses that exceed mean_bound or, summed over the response, sequence_bound.
    """

    action: str = "warn"
    mean_bound: float = 0.05
    share_bound: float = 0.05
    token_bound: float = 0.5
    sequence_bound: float = 10.0


@dataclass
class VllmConfig:
    """vLLM inside the training ranks (rollout.engine=vllm).

    tensor_parallel_size: consecutive ranks that one engine is spread over; the world holds as many engines as fit.
    max_model_len: tokens of prompt and response, null = as many as the prompts need. gpu_memory_utilization: share of a
    device's memory that vLLM takes while it generates. kv_cache_memory_mib: the key-value cache of a rank instead (on
    CPU 256 where null). engine_args: more of vLLM's own engine arguments, by their names.
    """

    tensor_parallel_size: int = 1
    max_model_len: int | None = None
    max_num_seqs: int = 256
    gpu_memory_utilization: float = 0.5
    kv_cache_memory_mib: int | None = None
    enforce_eager: bool = False
    engine_args: dict[str, Any] = field(default_factory=dict)


@dataclass
class ServerConfig:
    """vLLM servers (rollout.engine=vllm_server), as `sppo serve` starts them.

    urls: http://host:port of each. model: the name they serve, null = the only one. api_key_env: environment variable
    that holds the API key, which is written nowhere. concurrency: prompts under way on one server. timeout_s: seconds
    for one prompt's responses. retries: attempts after the first on the same server, backoff_s seconds apart, doubling;
    then the server is taken out until the next push finds it healthy.
    weight_sync: broadcast (NCCL on CUDA, gloo on CPU) | disk (safetensors in sync_folder, which every server must see;
    null = output_dir/weights). bucket_mib: how much is broadcast at a time.
    """

    urls: list[str] = field(default_factory=list)
    model: str | None = None
    api_key_env: str = "VLLM_API_KEY"
    concurrency: int = 64
    timeout_s: float = 600.0
    retries: int = 3
    backoff_s: float = 1.0
    weight_sync: str = "broadcast"
    sync_folder: str | None = None
    bucket_mib: float = 256.0


@dataclass
class RolloutConfig:
    """engine: megatron | vllm | vllm_server | replay. path: the replay's file or folder. rescore: score it again.

    top_p and top_k change the distribution's support, which needs objective.importance_weight. batch_size: sequences
    generated at a time on one replica (engine=megatron).
    ahead: 1 generates the next iteration's responses while this one is trained (engine=vllm_server); they are of the
    policy before, which needs objective.importance_weight.
    verify: after every push of weights, each replica's log-probs of a probe prompt are compared with the trainer's.
    """

    engine: str = "megatron"
    path: str | None = None
    rescore: bool = False
    num_samples_per_prompt: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    max_response_length: int = 512
    batch_size: int = 256
    seed: int = 1234
    ahead: int = 0
    verify: bool = False
    mismatch: MismatchConfig = field(default_factory=MismatchConfig)
    vllm: VllmConfig = field(default_factory=VllmConfig)
    server: ServerConfig = field(default_factory=ServerConfig)


@dataclass
class TrainConfig:
    """minibatch_size: sequences of one optimizer step over all data-parallel ranks; null = the whole iteration.

    micro_batch_size: sequences of one padded micro-batch. max_tokens_per_micro_batch: packs sequences (THD) under this
    budget of tokens instead, over all context-parallel ranks together.
    fused_loss: auto | 'off'. auto computes the regression loss in the LM head, where it keeps the logits of whole
    sequences as far as logits_budget_mib (MiB on each rank) allows and computes only those of longer ones twice.
    log_prob_chunk_size: response tokens that the LM head works on at a time, null = chosen from shapes and device.
    log_prob_kernels: auto (Triton on CUDA where it is installed) | torch | triton.
    """

    iterations: int = 100
    prompts_per_iteration: int | None = 32
    epochs_per_iteration: int = 1
    minibatch_size: int | None = None
    micro_batch_size: int = 1
    max_tokens_per_micro_batch: int | None = None
    fused_loss: str = "auto"
    logits_budget_mib: float = 512.0
    log_prob_chunk_size: int | None = None
    log_prob_kernels: str = "auto"
    shuffle: bool = True
    seed: int = 1234


@dataclass
class OptimizerConfig:
    """Adam with decoupled weight decay (none on norms and biases). lr_decay_style: constant | linear | cosine.

    lr_decay_steps: optimizer steps until min_lr, null = the whole run.
    """

    lr: float = 1e-6
    min_lr: float = 0.0
    lr_warmup_steps: int = 0
    lr_decay_style: str = "constant"
    lr_decay_steps: int | None = None
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_eps: float = 1e-8
    clip_grad: float = 1.0
    use_distributed_optimizer: bool = True


@dataclass
class DataConfig:
    """Of each record, prompt_key holds text or chat messages, answer_key the ground truth.

    train_path, eval_path: a JSONL file, a Parquet file or a folder of them, a folder saved by Hugging Face `datasets`,
    or a hub id (org/name or org/name:configuration). train_split, eval_split: which split of those that have several;
    null = train and test.
    apply_chat_template: text becomes one user message, and the tokenizer's template is applied.
    max_prompt_length: tokens; longer prompts are dropped and counted.
    response_key: holds a human's response, as text (objective.pairwise=spin); one of more than
    rollout.max_response_length tokens is dropped with its prompt, and counted.
    """

    train_path: str | None = None
    eval_path: str | None = None
    train_split: str | None = None
    eval_split: str | None = None
    prompt_key: str = "prompt"
    answer_key: str = "answer"
    response_key: str | None = None
    apply_chat_template: bool = False
    max_prompt_length: int | None = None


@dataclass
class EvalConfig:
    """interval: iterations between evaluations, besides the one before and the one after; 0 = only those two.

    temperature 0 is greedy decoding.
    """

    interval: int = 0
    num_samples_per_prompt: int = 1
    temperature: float = 0.0


@dataclass
class CheckpointConfig:
    """save_interval: optimizer steps between checkpoints, null = only at the end. load: null | latest | a folder.

    keep_last: how many of the latest stay. keep_best: metric of the evaluation; whenever it is the highest so far, a
    checkpoint is saved, stays, and is linked as checkpoints/best. auto = eval_reward_mean, null = none is kept.
    """

    save_interval: int | None = None
    load: str | None = None
    keep_last: int = 2
    keep_best: str | None = "auto"
    async_save: bool = False


@dataclass
class LoggerConfig:
    progress: bool = True
    tensorboard: bool = True
    wandb_project: str | None = None
    wandb_name: str | None = None


@dataclass
class Config:
    """Everything one run needs; what `configs/config.yaml` composes."""

    model: ModelConfig = field(default_factory=ModelConfig)
    parallelism: ParallelismConfig = field(default_factory=ParallelismConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    output_dir: str = "outputs/run"
