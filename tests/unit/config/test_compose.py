"""Composition by Hydra: every file of configs/, the command line, and the help for what isn't known."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sppo_megatron.cluster.exit_codes import EXIT_CONFIG_ERROR
from sppo_megatron.config import Config
from sppo_megatron.config.compose import compose_config, config_folder
from sppo_megatron.config.reward import RuleConfig
from sppo_megatron.config.values import to_config
from sppo_megatron.errors import ConfigError
from sppo_megatron.rollout.registry import check_run
from sppo_megatron.train import command as train

MODEL = "model.hf_path=somewhere"
FILES = sorted(path.relative_to(config_folder()) for path in config_folder().glob("*/*.yaml"))


def compose(*overrides: str, **arguments) -> Config:
    return compose_config([MODEL, *overrides], **arguments)[0]


@pytest.fixture
def prompts(tmp_path) -> str:
    path = tmp_path / "prompts.jsonl"
    path.write_text("")
    return str(path)


def test_the_defaults_are_the_schemas():
    """configs/ chooses options that say what the dataclasses say; nothing is set in two places."""
    expected = Config()
    expected.model.hf_path = "somewhere"
    assert compose() == expected


def test_there_are_files():
    assert {str(path.parent) for path in FILES} >= {"objective", "parallelism", "precision", "reward", "rollout"}


def complete_reward(config):
    """What a kind needs besides its file."""
    config.reward.function = "module:name" if config.reward.kind in ("function", "pairwise_function") else None
    config.reward.named = {"a": {"kind": "numeric"}} if config.reward.kind == "named" else {}
    config.reward.key = "reward"
    config.reward.rule = RuleConfig(pattern="yes", schema={"type": "object"}, max_tokens=9)
    config.reward.judge.urls = ["http://127.0.0.1:8000"]
    config.reward.model.path = "somewhere"
    config.reward.mixture = [{"kind": "numeric", "weight": 1.0}] if config.reward.kind == "mixture" else []
    if config.reward.kind == "none":
        config.objective.pairwise, config.objective.beta = "spin", 0.1
    if config.reward.kind in ("judge", "pairwise_model", "pairwise_function"):
        config.objective.reward = "win_rate"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_composes_and_is_valid(file, prompts, tmp_path):
    group, option = file.parent.name, file.stem
    config, composed = compose_config([f"{group}={option}", *([] if group == "experiment" else [MODEL])])
    assert isinstance(config, Config)
    written = OmegaConf.load(config_folder() / file)
    written.pop("defaults", None)
    reached = composed if group == "experiment" else composed[group]
    flat = OmegaConf.to_container(written)
    assert flat, "a file that sets nothing"
    assert OmegaConf.merge(reached, written) == reached  # all that it says has arrived
    config.data.train_path, config.data.eval_path = None if config.data.sources else prompts, None
    for source in (*config.data.sources, *config.data.eval_sources):
        source["path"] = prompts
    if group == "rollout" and option == "replay":
        config.rollout.path = prompts
    if group == "rollout" and option == "vllm_server":
        config.rollout.server.urls = ["http://127.0.0.1:8100"]
    if group == "reward":
        complete_reward(config)
    if "sft" in (option, config.objective.name) or option == "demonstrations":
        config.objective.name, config.rollout.engine = "sft", "demonstrations"
    if option == "ratings":
        config.objective.name, config.objective.beta = "kto", 0.1
    if group == "objective":  # pairs, or whole groups
        config.train.micro_batch_size = config.rollout.num_samples_per_prompt
    if config.objective.pairwise is not None:
        config.train.micro_batch_size = 2
        config.data.response_key = "gold" if config.objective.pairwise == "spin" else None
    sizes = config.parallelism
    world = sizes.tensor_model_parallel_size * sizes.pipeline_model_parallel_size * sizes.context_parallel_size
    expert_tensor = sizes.expert_tensor_parallel_size or sizes.tensor_model_parallel_size
    experts = expert_tensor * sizes.expert_model_parallel_size * sizes.pipeline_model_parallel_size
    check_run(config, math.lcm(world, experts, config.rollout.vllm.tensor_parallel_size))


def test_demo():
    config = compose_config(["experiment=demo"])[0]
    assert (config.precision.dtype, config.parallelism.tensor_model_parallel_size) == ("fp32", 2)
    assert (config.reward.kind, config.objective.baseline) == ("character_share", "mean")
    assert config.objective.eta == 4.0 and config.objective.tau is None
    changed = compose_config(["experiment=demo", "train.iterations=3", "parallelism=single"])[0]
    assert (changed.train.iterations, changed.parallelism.tensor_model_parallel_size) == (3, 1)


def test_overrides_are_typed():
    config = compose(
        "train.iterations=7", "optimizer.lr=1e-5", "objective.eta=null", "objective.tau=2", "precision=fp32"
    )
    assert config.train.iterations == 7
    assert config.optimizer.lr == 1e-5
    assert config.objective.eta is None and config.objective.tau == 2.0
    assert config.precision.dtype == "fp32"
    assert compose("objective=kimi").objective.loss_scale == "kimi"


def test_composing_twice_shares_nothing():
    first = compose("train.iterations=7")
    first.train.seed = 99
    assert compose().train.iterations == Config().train.iterations
    assert compose().train.seed == Config().train.seed


def test_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compose()
    assert list(tmp_path.iterdir()) == []


def test_own_folder(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "tiny.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /precision: fp16\ntrain:\n  iterations: 2\n"
    )
    (folder / "objective").mkdir()
    (folder / "objective" / "mine.yaml").write_text("eta: 9.0\n")
    config = compose("experiment=tiny", "objective=mine", extra_folder=str(folder))
    assert (config.train.iterations, config.precision.dtype, config.objective.eta) == (2, "fp16", 9.0)
    monkeypatch.chdir(tmp_path)
    assert compose("experiment=tiny", extra_folder="mine").train.iterations == 2
    with pytest.raises(ConfigError, match="experiment/tiny"):
        compose("experiment=tiny")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.learning_rat=1", ["optimizer.learning_rat is not a known key", "optimizer.lr"]),
        ("optimzer.lr=1", ["optimzer.lr", "did you mean optimizer.lr"]),
        ("rollout.num_samples=4", ["rollout.num_samples", "did you mean rollout.num_samples_per_prompt"]),
        ("train.micro_batchsize=4", ["did you mean train.micro_batch_size"]),
        ("lr=1e-5", ["lr is not a known key", "did you mean optimizer.lr"]),
        ("minibatch_size=4", ["did you mean train.minibatch_size"]),
        ("model={hf_pth: x}", ["model.hf_pth is not a known key", "did you mean model.hf_path"]),
        ("outputdir=x", ["did you mean output_dir"]),
        ("objectve=kimi", ["did you mean objective"]),
        ("+train.iteratons=3", ["train.iteratons is not a known key", "did you mean train.iterations"]),
        ("+nonsense=3", ["nonsense is not a known key"]),
        ("precision=fp8", ["precision/fp8", "choose one of bf16, fp16, fp32"]),
        ("experiment=dmo", ["experiment/dmo", "demo"]),
        ("train.iterations=many", ["train.iterations='many' must be a whole number of at least 1"]),
        ("train.iterations=1.5", ["train.iterations=1.5 must be a whole number"]),
        ("train.iterations=null", ["train.iterations=null must be a whole number"]),
        ("optimizer.lr=${nowhere}", ["nowhere"]),
        ("train.iterations", ["train.iterations"]),
    ],
)
def test_what_is_wrong_is_named_in_one_line(override, said):
    with pytest.raises(ConfigError) as raised:
        compose(override)
    message = str(raised.value)
    for text in said:
        assert text in message
    assert "\n" not in message


@pytest.mark.parametrize("override", ["train.iterations=many", "optimizer.lr=null"])
def test_a_key_that_is_known_is_not_suggested(override):
    with pytest.raises(ConfigError) as raised:
        compose(override)
    assert "did you mean" not in str(raised.value)


def test_the_model_must_be_given():
    with pytest.raises(ConfigError, match="hf_path"):
        compose_config([])


# ------------------------------------------------------------------------------------------------ the command


def test_cfg_prints_yaml_that_composes_to_the_same(capsys):
    assert train.main([MODEL, "train.iterations=7", "objective=kimi", "--cfg"]) == 0
    printed = capsys.readouterr().out
    assert to_config(OmegaConf.to_object(OmegaConf.create(printed))) == compose("train.iterations=7", "objective=kimi")


def test_cfg_of_an_own_folder(capsys, tmp_path):
    (tmp_path / "objective").mkdir()
    (tmp_path / "objective" / "mine.yaml").write_text("eta: 9.0\n")
    assert train.main([MODEL, "objective=mine", "--cfg", "--config-dir", str(tmp_path)]) == 0
    assert OmegaConf.create(capsys.readouterr().out).objective.eta == 9.0


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["optimzer.lr=1"], "did you mean optimizer.lr"),
        ([], "data.train_path"),  # composes, and has no prompts
    ],
)
def test_a_bad_configuration_is_exit_code_2_and_one_message(capsys, overrides, said):
    assert train.main([MODEL, *overrides]) == EXIT_CONFIG_ERROR == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("configuration error: ") and said in captured.err


def test_a_finished_run_is_not_overwritten(capsys, tmp_path, prompts):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    assert train.main([MODEL, f"data.train_path={prompts}", f"output_dir={tmp_path / 'run'}"]) == 2
    message = capsys.readouterr().err
    assert "holds a run already" in message and "checkpoint.load=latest" in message
    assert [path.name for path in Path(tmp_path / "run").iterdir()] == ["metrics.jsonl"]
