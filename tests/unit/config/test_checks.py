"""Every check has a bad example whose message names the key and what to do; what is good passes."""

from __future__ import annotations

from functools import reduce

import pytest

from sppo_megatron.config import Config, ParallelismConfig
from sppo_megatron.config.parallelism import check_layout
from sppo_megatron.errors import ConfigError
from sppo_megatron.rollout.registry import check_run


@pytest.fixture
def prompts(tmp_path) -> str:
    path = tmp_path / "prompts.jsonl"
    path.write_text("")
    return str(path)


def make_config(prompts: str, **values) -> Config:
    """values: "group.key" -> value; the string PROMPTS stands for a file that exists."""
    config = Config()
    config.model.hf_path = "somewhere"
    config.data.train_path = prompts
    for key, value in values.items():
        *groups, name = key.split(".")
        group = reduce(getattr, groups, config)
        assert hasattr(group, name), key
        setattr(group, name, prompts if value == "PROMPTS" else value)
    return config


def message_of(config: Config, world_size: int = 1) -> str:
    with pytest.raises(ConfigError) as raised:
        check_run(config, world_size)
    return str(raised.value)


GOOD = [
    {},
    {"rollout.engine": "replay", "rollout.path": "PROMPTS", "data.train_path": None},
    {"rollout.engine": "replay", "rollout.path": "PROMPTS", "train.prompts_per_iteration": None},
    {"objective.eta": None, "objective.tau": 0.01, "objective.loss_scale": "kimi", "objective.baseline": "mean"},
    {"objective.baseline": "loo_mean", "rollout.num_samples_per_prompt": 2},
    {"objective.sequence_weight": "max_length"},
    {"objective.loss_agg_mode": "token-mean"},
    {"objective.pairwise": "dpo", "objective.beta": 0.1, "train.micro_batch_size": 2},
    {"objective.pairwise": "sppo", "objective.reward": "win_rate", "train.micro_batch_size": 2},
    {"objective.pairwise": "rebel", "train.minibatch_size": 6, "train.max_tokens_per_micro_batch": 100},
    {
        "objective.pairwise": "spin",
        "objective.beta": 0.1,
        "data.response_key": "gold",
        "reward.kind": "none",
        "rollout.num_samples_per_prompt": 1,
        "train.micro_batch_size": 2,
    },
    {"objective.pairwise": "inpo", "objective.ref_coef": 0.3, "train.micro_batch_size": 2},
    {"objective.importance_weight": "token", "objective.importance_cap": 1.5, "objective.target_clip": 3.0},
    {"rollout.top_p": 0.9, "rollout.top_k": 40, "rollout.temperature": 0.7, "objective.importance_weight": "token"},
    {"rollout.engine": "vllm", "rollout.vllm.engine_args": {"max_num_batched_tokens": 512}, "rollout.verify": True},
    {
        "rollout.engine": "vllm_server",
        "rollout.server.urls": ["http://127.0.0.1:8100", "https://rollouts.example:443/"],
        "rollout.ahead": True,
        "objective.importance_weight": "sequence",
    },
    {"reward.kind": "function", "reward.function": "module:name"},
    {"checkpoint.load": "latest", "checkpoint.save_interval": 1},
    {"optimizer.min_lr": 1e-6, "optimizer.lr": 1e-6, "optimizer.lr_decay_steps": 11, "optimizer.lr_warmup_steps": 10},
    {"optimizer.clip_grad": 0.0, "optimizer.adam_beta1": 0.0},
    {"parallelism.overlap_grad_reduce": True, "parallelism.overlap_param_gather": True},
    {"precision.fp8": "hybrid", "precision.fp8_recipe": "mxfp8"},
    {"eval.temperature": 0.0, "eval.interval": 0},
    {"model.moe_aux_loss_coeff": None},
]


@pytest.mark.parametrize("values", GOOD, ids=str)
def test_good(prompts, values):
    check_run(make_config(prompts, **values), world_size=1)


@pytest.mark.parametrize(
    ("world_size", "values"),
    [
        (3, {}),
        (4, {"tensor": 4, "sequence_parallel": True}),
        (8, {"tensor": 2, "pipeline": 2, "context": 2}),
        (4, {"pipeline": 2, "virtual_pipeline": 2}),
    ],
)
def test_good_worlds(prompts, world_size, values):
    config = make_config(prompts)
    for name, value in values.items():
        key = {"context": "context_parallel_size"}.get(name, f"{name}_model_parallel_size")
        setattr(config.parallelism, name if hasattr(config.parallelism, name) else key, value)
    check_run(config, world_size)


P = "parallelism."
SOURCES = {"data.train_path": None}
BAD = [
    # values, and what the message must say: the key as it is, and the way out
    ({"objective.eta": 1.0, "objective.tau": 1.0}, ["objective.eta=1.0", "objective.tau=1.0", "exactly one", "null"]),
    ({"objective.eta": None}, ["objective.eta=null", "exactly one"]),
    ({"objective.eta": 0.0}, ["objective.eta=0.0 must be above 0"]),
    ({"objective.eta": None, "objective.tau": -1.0}, ["objective.tau=-1.0 must be above 0"]),
    ({"objective.eta": float("nan")}, ["objective.eta=nan must be above 0"]),
    (
        {"objective.sequence_weight": "length", "objective.loss_agg_mode": "seq-mean-token-mean"},
        ["objective.sequence_weight", "objective.loss_agg_mode", "one of them"],
    ),
    (
        {"objective.baseline": "loo_mean", "rollout.num_samples_per_prompt": 1},
        ["rollout.num_samples_per_prompt of at least 2"],
    ),
    (
        {
            "objective.reward": "win_rate",
            "objective.win_rate_estimator": "leave_one_out",
            "rollout.num_samples_per_prompt": 1,
        },
        ["rollout.num_samples_per_prompt of at least 2"],
    ),
    ({"objective.pairwise": "dpo", "train.micro_batch_size": 2}, ["objective.pairwise=dpo needs objective.beta"]),
    ({"objective.pairwise": "ipo", "train.micro_batch_size": 2}, ["objective.pairwise=ipo needs objective.beta"]),
    (
        {"objective.pairwise": "rebel", "objective.beta": 1.0, "train.micro_batch_size": 2},
        ["objective.pairwise=rebel takes objective.eta", "objective.beta=null"],
    ),
    (
        {"objective.pairwise": "sppo", "train.micro_batch_size": 2},
        ["objective.pairwise=sppo", "objective.reward=win_rate"],
    ),
    ({"objective.pairwise": "rebel"}, ["train.micro_batch_size=1 must be even"]),
    (
        {"objective.pairwise": "spin", "objective.beta": 0.1, "train.micro_batch_size": 2},
        ["objective.pairwise=spin and data.response_key belong together"],
    ),
    ({"data.response_key": "gold"}, ["objective.pairwise=spin and data.response_key belong together"]),
    ({"objective.ref_coef": 0.5}, ["objective.ref_coef=0.5", "objective.pairwise=inpo"]),
    (
        {"objective.pairwise": "inpo", "objective.ref_coef": 1.5, "train.micro_batch_size": 2},
        ["objective.ref_coef=1.5 must be in [0, 1]"],
    ),
    (
        {"objective.pairwise": "rebel", "objective.sequence_weight": "length", "train.micro_batch_size": 2},
        ["sequence weights are for single responses", "sequence_weight=none"],
    ),
    (
        {"objective.pairwise": "rebel", "rollout.num_samples_per_prompt": 1, "train.micro_batch_size": 2},
        ["rollout.num_samples_per_prompt=1 must be at least 2"],
    ),
    ({"reward.kind": "none"}, ["reward.kind=none is for objective.pairwise=spin"]),
    (
        {"objective.pairwise": "rebel", "train.minibatch_size": 5, "train.micro_batch_size": 2},
        ["train.minibatch_size=5 must be even"],
    ),
    (
        {"objective.pairwise": "rebel", "train.minibatch_size": 5, "train.max_tokens_per_micro_batch": 100},
        ["train.minibatch_size=5 must be even"],
    ),
    ({"rollout.temperature": 0.0}, ["rollout.temperature=0.0 must be above 0"]),
    ({"rollout.top_p": 0.0, "objective.importance_weight": "token"}, ["rollout.top_p=0.0 must be in (0, 1]"]),
    ({"rollout.top_p": 1.1}, ["rollout.top_p=1.1 must be in (0, 1]"]),
    ({"rollout.top_p": 0.9}, ["rollout.top_p=0.9", "objective.importance_weight=sequence"]),
    ({"rollout.top_k": 40}, ["rollout.top_k=40", "objective.importance_weight=sequence"]),
    ({"rollout.filter": "degenerated"}, ["rollout.filter='degenerated' is not known", "module:name"]),
    ({"rollout.oversample": 2.0}, ["rollout.oversample can't be used", "rollout.filter=null"]),
    ({"rollout.min_spread": 0.1, "rollout.filter": "mine:keep"}, ["rollout.min_spread=0.1", "filter=degenerate alone"]),
    (
        {"rollout.filter": "degenerate", "rollout.num_samples_per_prompt": 1},
        ["rollout.num_samples_per_prompt must be at least 2"],
    ),
    (
        {
            "rollout.engine": "replay",
            "rollout.path": ".",
            "rollout.filter": "degenerate",
            "rollout.max_rounds": 3,
        },
        ["rollout.max_rounds can't be used", "rollout.engine=replay draws no prompts"],
    ),
    ({"rollout.verify": True}, ["rollout.verify=true", "rollout.engine=megatron"]),
    (
        {"rollout.ahead": True, "objective.importance_weight": "sequence"},
        ["rollout.ahead=true needs rollout.engine=vllm_server"],
    ),
    (
        {"rollout.engine": "vllm_server", "rollout.server.urls": ["http://a:1"], "rollout.ahead": True},
        ["rollout.ahead=true", "objective.importance_weight=sequence"],
    ),
    ({"rollout.engine": "vllm_server"}, ["rollout.server.urls", "sppo serve"]),
    ({"rollout.engine": "vllm_server", "rollout.server.urls": ["a:1"]}, ["'a:1'", "http://host:port"]),
    ({"rollout.engine": "vllm_server", "rollout.server.urls": ["http://a:1"] * 2}, ["names a server twice"]),
    ({"rollout.engine": "vllm", "rollout.vllm.tensor_parallel_size": 3}, ["tensor_parallel_size=3", "2 processes"]),
    ({"rollout.vllm.gpu_memory_utilization": 1.5}, ["gpu_memory_utilization=1.5 must be in (0, 1]"]),
    ({"rollout.top_k": 0}, ["rollout.top_k=0 must be -1 or at least 1"]),
    ({"rollout.top_k": -2}, ["rollout.top_k=-2 must be -1"]),
    (
        {"rollout.engine": "preferences", "data.train_path": None},
        ["rollout.engine=preferences needs data.train_path or data.sources"],
    ),
    ({"rollout.engine": "preferences", "rollout.rescore": True}, ["set rollout.rescore to false"]),
    ({"rollout.engine": "replay"}, ["rollout.engine=replay needs rollout.path"]),
    ({"rollout.engine": "replay", "rollout.path": "nowhere"}, ["rollout.path=nowhere does not exist"]),
    ({"data.train_path": None}, ["rollout.engine=megatron needs data.train_path"]),
    ({"data.train_path": "nowhere.jsonl"}, ["data.train_path=nowhere.jsonl does not exist"]),
    ({"data.sources": [{"name": "a", "path": "."}]}, ["data.train_path is the short form", "data.sources"]),
    ({"data.eval_sources": [{"name": "a"}]}, ["data.eval_sources[0]", "needs path"]),
    ({"data.eval_sources": [{"name": "a", "path": "no.jsonl"}]}, ["data.eval_sources[0]", "no.jsonl does not exist"]),
    ({"data.eval_sources": [{"name": "a", "path": ".", "weight": 1}]}, ["weight is not known", "prompt_key"]),
    ({"data.eval_sources": [{"name": "a b", "path": "."}]}, ["name='a b' must be a word"]),
    ({"data.eval_sources": [{"name": "a", "path": "."}] * 2}, ["two sources of one name: a, a"]),
    ({"data.eval_sources": [{"name": "a", "path": ".", "answer_key": 3}]}, ["answer_key=3 is no value"]),
    ({**SOURCES, "data.sources": [{"name": "a", "path": ".", "weight": 0}]}, ["weight=0 must be a number above 0"]),
    (
        {**SOURCES, "data.sources": [{"name": "a", "path": ".", "weight": [1, 0]}]},
        ["every source has weight 0 in iteration 1"],
    ),
    ({"data.eval_path": "nowhere.jsonl"}, ["data.eval_path=nowhere.jsonl does not exist"]),
    ({"train.prompts_per_iteration": None}, ["rollout.engine=megatron needs train.prompts_per_iteration"]),
    ({"reward.kind": "function"}, ["reward.kind=function", "reward.function=module:name", "both or neither"]),
    ({"reward.function": "module:name"}, ["reward.kind=function", "both or neither"]),
    ({"checkpoint.load": "nowhere"}, ["checkpoint.load=nowhere", "latest"]),
    ({"optimizer.adam_beta1": 1.0}, ["optimizer.adam_beta1=1.0 must be in [0, 1)"]),
    ({"optimizer.adam_beta2": -0.1}, ["optimizer.adam_beta2=-0.1 must be in [0, 1)"]),
    ({"optimizer.min_lr": 1e-3}, ["optimizer.min_lr=0.001 must not be above optimizer.lr=1e-06"]),
    (
        {"optimizer.lr_decay_steps": 10, "optimizer.lr_warmup_steps": 10},
        ["optimizer.lr_decay_steps=10", "larger than optimizer.lr_warmup_steps=10", "null"],
    ),
    ({P + "sequence_parallel": True}, [P + "sequence_parallel=true needs", P + "tensor_model_parallel_size above 1"]),
    (
        {P + "virtual_pipeline_model_parallel_size": 2},
        [P + "virtual_pipeline_model_parallel_size=2", P + "pipeline_model_parallel_size above 1", "null"],
    ),
    (
        {P + "virtual_pipeline_model_parallel_size": 1, P + "pipeline_model_parallel_size": 2},
        [P + "virtual_pipeline_model_parallel_size=1 is no interleaving", "null"],
    ),
    ({"train.shared_prompts": True}, ["train.shared_prompts needs packed", "set train.max_tokens_per_micro_batch"]),
    (
        {
            "train.shared_prompts": "auto",
            "train.max_tokens_per_micro_batch": 64,
            P + "context_parallel_size": 2,
        },
        ["train.shared_prompts", P + "context_parallel_size=2"],
    ),
    ({P + "overlap_param_gather": True}, [P + "overlap_param_gather=true needs", P + "overlap_grad_reduce=true"]),
    (
        {
            P + "overlap_param_gather": True,
            P + "overlap_grad_reduce": True,
            "optimizer.use_distributed_optimizer": False,
        },
        ["optimizer.use_distributed_optimizer=true"],
    ),
]


@pytest.mark.parametrize(("values", "said"), BAD, ids=str)
def test_bad(prompts, values, said):
    message = message_of(make_config(prompts, **values), world_size=2)
    for text in said:
        assert text in message
    assert len(message.splitlines()) == 1  # one problem, one line


def test_engines(prompts):
    message = message_of(make_config(prompts, **{"rollout.engine": "nonsense"}))
    known = "megatron, vllm, vllm_server, replay, preferences, demonstrations, ratings"
    assert message == f"rollout.engine='nonsense' is not known: choose one of {known}"


def test_a_world_that_does_not_split(prompts):
    values = {
        P + "tensor_model_parallel_size": 2,
        P + "pipeline_model_parallel_size": 2,
        P + "context_parallel_size": 2,
    }
    message = message_of(make_config(prompts, **values), world_size=4)
    assert "4 processes can't be split into model replicas of 8 = tensor 2 × pipeline 2 × context 2" in message
    assert "start a multiple of 8 (torchrun --nproc-per-node)" in message
    check_run(make_config(prompts, **values), world_size=16)


def test_experts_that_do_not_split(prompts):
    values = {P + "expert_model_parallel_size": 2, P + "pipeline_model_parallel_size": 2}
    message = message_of(make_config(prompts, **values), world_size=6)
    assert "6 processes can't be split into expert replicas of 4 = expert tensor 1 × expert 2 × pipeline 2" in message
    assert P + "expert_model_parallel_size" in message
    check_run(make_config(prompts, **values), world_size=8)
    values = {P + "tensor_model_parallel_size": 2, P + "expert_tensor_parallel_size": 3}
    message = message_of(make_config(prompts, **values), world_size=6)
    assert P + "expert_tensor_parallel_size × expert_model_parallel_size = 3 must divide" in message
    assert P + "tensor_model_parallel_size=2 or be a multiple of it" in message


def test_all_problems_at_once(prompts):
    """First every value that its key can't have, then what the values mean together."""
    config = make_config(prompts, **{"rollout.top_k": 0, "optimizer.lr": 0.0, "objective.pairwise": "x"})
    message = message_of(config)
    assert all(key in message for key in ("rollout.top_k=0", "optimizer.lr=0.0", "objective.pairwise='x'"))
    assert len(message.splitlines()) == 3
    config = make_config(prompts, **{"objective.eta": None, "rollout.top_k": 5, "reward.kind": "none"})
    assert len(message_of(config).splitlines()) == 3


# ------------------------------------------------------------------------------------------------ model and layout

EXPERTS = {"num_experts": 6, "expert_ffn_hidden_size": 4}
MODEL = {"num_layers": 6, "num_attention_heads": 8, "num_query_groups": 2, "ffn_hidden_size": 24}


@pytest.mark.parametrize(
    "sizes", [(1, 1, None), (2, 3, None), (4, 6, None), (8, 1, None), (1, 3, 2), (2, 2, 3)], ids=str
)
def test_good_layouts(sizes):
    tp, pp, vpp = sizes
    check_layout(ParallelismConfig(tp, pp, vpp), **MODEL)


def test_good_expert_layouts():
    check_layout(ParallelismConfig(expert_model_parallel_size=3), **MODEL, **EXPERTS)
    parallelism = ParallelismConfig(
        tensor_model_parallel_size=2,
        expert_model_parallel_size=2,
        expert_tensor_parallel_size=1,
        sequence_parallel=True,
    )
    check_layout(parallelism, **MODEL, **EXPERTS)


@pytest.mark.parametrize(
    ("parallelism", "model", "said"),
    [
        (
            {"tensor_model_parallel_size": 3},
            {"num_query_groups": 3},
            ["tensor_model_parallel_size=3 does not divide the model's 8 attention heads: choose one of 1, 2, 4, 8"],
        ),
        (
            {"tensor_model_parallel_size": 8},
            {"ffn_hidden_size": 20},
            ["does not divide the model's 20 MLP columns: choose one of 1, 2, 4, 5"],
        ),
        (
            {"tensor_model_parallel_size": 4},
            {"num_attention_heads": 24, "num_query_groups": 6},
            ["tensor_model_parallel_size=4 neither divides nor is a multiple of the model's 6 key-value heads"],
        ),
        (
            {"pipeline_model_parallel_size": 4},
            {},
            ["6 layers can't be split evenly over 4 pipeline stages", "product must be one of 1, 2, 3, 6"],
        ),
        (
            {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},
            {},
            ["6 layers can't be split evenly over 4 pipeline stages"],
        ),
        (
            {"expert_model_parallel_size": 2},
            {},
            [P + "expert_model_parallel_size", "this one is dense: set them to 1 and null"],
        ),
        ({"expert_tensor_parallel_size": 1}, {}, ["this one is dense: set them to 1 and null"]),
        (
            {"expert_model_parallel_size": 4},
            EXPERTS,
            [P + "expert_model_parallel_size=4 does not divide the model's 6 experts: choose one of 1, 2, 3, 6"],
        ),
        (
            {"expert_tensor_parallel_size": 8},
            EXPERTS,
            [P + "expert_tensor_parallel_size=8 does not divide the experts' 4 MLP columns"],
        ),
        ({"tensor_model_parallel_size": 2}, EXPERTS, [P + "sequence_parallel=true"]),
    ],
)
def test_bad_layouts(parallelism, model, said):
    with pytest.raises(ConfigError) as raised:
        check_layout(ParallelismConfig(**parallelism), **{**MODEL, **model})
    for text in said:
        assert text in str(raised.value)


def test_all_layout_problems_at_once():
    parallelism = ParallelismConfig(tensor_model_parallel_size=5, pipeline_model_parallel_size=5)
    with pytest.raises(ConfigError) as raised:
        check_layout(parallelism, **MODEL)
    assert len(str(raised.value).splitlines()) == 4
