"""The configured rollout engine with all that belongs to it: evaluation, weight sync, probe, rollouts ahead."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from sppo_megatron.config import Config
from sppo_megatron.engines.base import ProbedEngine, RolloutEngine
from sppo_megatron.engines.in_process import InProcessSync
from sppo_megatron.engines.megatron import MegatronEngine
from sppo_megatron.engines.vllm.engine import VllmEngine
from sppo_megatron.engines.vllm.replica import EngineSettings, VllmReplica
from sppo_megatron.engines.vllm.sync import ReplicaSync
from sppo_megatron.engines.vllm_servers.broadcast import BroadcastSync
from sppo_megatron.engines.vllm_servers.client import ServerClient
from sppo_megatron.engines.vllm_servers.disk import DiskSync
from sppo_megatron.engines.vllm_servers.engine import VllmServerEngine
from sppo_megatron.engines.vllm_servers.pool import ServerPool
from sppo_megatron.engines.weight_probe import BOUNDS, WeightProbe
from sppo_megatron.engines.weight_sync import WeightSync
from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.save import save_weights
from sppo_megatron.policy.generate.generator import Generator
from sppo_megatron.rollout.ahead import RolloutsAhead
from sppo_megatron.train.inputs import Inputs
from sppo_megatron.types import SamplingParams


@dataclass
class Engines:
    """rollout samples for training, evaluation for held-out prompts; both from the weights that weight_sync brings."""

    rollout: RolloutEngine
    evaluation: RolloutEngine
    weight_sync: WeightSync
    probe: WeightProbe | None = None
    ahead: RolloutsAhead | None = None


def build_replica(config: Config, inputs: Inputs, standalone: bool = False) -> VllmReplica | None:
    """vLLM's share of this rank, where configured. Before the policy: vLLM wants to see the device's memory free.

    standalone: no trainer is beside it: see EngineSettings.
    """
    if config.rollout.engine != "vllm":
        return None
    v = config.rollout.vllm
    settings = EngineSettings(
        folder=inputs.folder,
        dtype=config.precision.dtype,
        max_model_len=v.max_model_len or inputs.longest_prompt + config.rollout.max_response_length,
        tensor_parallel_size=v.tensor_parallel_size,
        max_num_seqs=v.max_num_seqs,
        gpu_memory_utilization=v.gpu_memory_utilization,
        kv_cache_memory_mib=v.kv_cache_memory_mib,
        enforce_eager=v.enforce_eager,
        engine_args=v.engine_args,
        standalone=standalone,
    )
    return VllmReplica(settings, world_size=dist.get_world_size())


def build_engines(config: Config, inputs: Inputs, generator: Generator, replica: VllmReplica | None) -> Engines:
    """Collective. Raises ConfigError where servers can't be used."""
    if inputs.replay is not None:
        return Engines(inputs.replay, megatron_engine(config, inputs, generator, True), InProcessSync())
    if replica is not None:
        engine = vllm_engine(config, inputs, replica, False)
        evaluation = vllm_engine(config, inputs, replica, True)
        return Engines(engine, evaluation, ReplicaSync(replica), _probe(config, inputs, engine))
    if config.rollout.engine == "vllm_server":
        return _server_engines(config, inputs)
    return Engines(
        rollout=megatron_engine(config, inputs, generator, False),
        evaluation=megatron_engine(config, inputs, generator, True),
        weight_sync=InProcessSync(),
    )


def sampling_params(config: Config, inputs: Inputs, for_evaluation: bool) -> SamplingParams:
    r = config.rollout
    return SamplingParams(
        max_new_tokens=r.max_response_length,
        temperature=config.eval.temperature if for_evaluation else r.temperature,
        top_p=1.0 if for_evaluation else r.top_p,
        top_k=-1 if for_evaluation else r.top_k,
        stop_token_ids=inputs.stop_token_ids,
    )


def _num_samples(config: Config, for_evaluation: bool) -> int:
    return config.eval.num_samples_per_prompt if for_evaluation else config.rollout.num_samples_per_prompt


def megatron_engine(config: Config, inputs: Inputs, generator: Generator, for_evaluation: bool) -> MegatronEngine:
    """See MegatronEngine."""
    return MegatronEngine(
        generator,
        inputs.tokenizer,
        sampling_params(config, inputs, for_evaluation),
        num_samples_per_prompt=_num_samples(config, for_evaluation),
        seed=config.rollout.seed,
        batch_size=config.rollout.batch_size,
    )


def vllm_engine(config: Config, inputs: Inputs, replica: VllmReplica, for_evaluation: bool) -> VllmEngine:
    """See VllmEngine."""
    return VllmEngine(
        replica,
        inputs.tokenizer,
        sampling_params(config, inputs, for_evaluation),
        num_samples_per_prompt=_num_samples(config, for_evaluation),
        seed=config.rollout.seed,
        tensor_parallel_size=config.rollout.vllm.tensor_parallel_size,
    )


def server_pool(config: Config) -> ServerPool:
    """The configured rollout servers."""
    s = config.rollout.server
    api_key = os.environ.get(s.api_key_env)
    clients = [ServerClient(url, api_key=api_key, model=s.model, timeout_s=s.timeout_s) for url in s.urls]
    return ServerPool(clients, concurrency=s.concurrency, retries=s.retries, backoff_s=s.backoff_s)


def server_engine(
    config: Config, inputs: Inputs, pool: ServerPool, for_evaluation: bool, unfinished_folder: Path | None = None
) -> VllmServerEngine:
    """See VllmServerEngine."""
    return VllmServerEngine(
        pool,
        inputs.tokenizer,
        sampling_params(config, inputs, for_evaluation),
        num_samples_per_prompt=_num_samples(config, for_evaluation),
        seed=config.rollout.seed,
        unfinished_folder=unfinished_folder,
    )


def _server_engines(config: Config, inputs: Inputs) -> Engines:
    pool = server_pool(config)
    unfinished_folder = Path(config.output_dir) / "rollouts" / "unfinished"
    rollout = server_engine(config, inputs, pool, False, unfinished_folder)
    rollout.check_servers()
    ahead = RolloutsAhead(rollout) if config.rollout.ahead else None
    evaluation = server_engine(config, inputs, pool, True)
    return Engines(rollout, evaluation, _server_sync(config, pool), _probe(config, inputs, rollout), ahead)


def _server_sync(config: Config, pool: ServerPool) -> WeightSync:
    s = config.rollout.server
    if s.weight_sync == "broadcast":
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        return BroadcastSync(pool, device=device, timeout_s=s.timeout_s, bucket_bytes=int(s.bucket_mib * 2**20))
    return DiskSync(pool, Path(s.sync_folder or Path(config.output_dir) / "weights").absolute(), save_weights)


def _probe(config: Config, inputs: Inputs, engine: ProbedEngine) -> WeightProbe | None:
    if not config.rollout.verify:
        return None
    if not inputs.train_prompts:
        raise ConfigError("rollout.verify=true needs a prompt: data.train_path has none")
    return WeightProbe(engine, inputs.train_prompts[0], BOUNDS[config.precision.dtype])
