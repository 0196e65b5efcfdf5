"""What a configuration asks for and this machine can't do."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import torch

from sppo_doctor.finding import NOTE, OK, PROBLEM, WARNING, Finding
from sppo_megatron.config import Config
from sppo_megatron.config.precision import find_fp8_problem
from sppo_megatron.hf.gguf_file import find_gguf
from sppo_megatron.parallel.fused_kernels import cuda_version, device_capability, is_installed
from sppo_megatron.parallel.kernels import select_kernels
from sppo_megatron.rewards.registry import kind_of, parts_of
from sppo_megatron.rollout.registry import engine_kind
from sppo_megatron.train.tracking.destinations.registry import DESTINATIONS

AREA = "configuration"
CONNECT_TIMEOUT_S = 3.0


def check_features(config: Config) -> Iterator[Finding]:
    """One finding for each feature that is asked for and needs something."""
    for check in (_precision, _rollout, _reward, _kernels, _loggers, _model):
        yield from check(config)


def _precision(config: Config) -> Iterator[Finding]:
    p, version = config.precision, device_capability()
    if p.fp8 is not None:
        problem = find_fp8_problem(
            p, transformer_engine=is_installed("transformer_engine"), capability=version, cuda=cuda_version()
        )
        subject = f"precision.fp8_recipe={p.fp8_recipe}"
        yield Finding(AREA, subject, PROBLEM, problem) if problem else Finding(AREA, subject, OK, "runs here")
    elif p.dtype == "bf16" and version is not None and version < (8, 0):
        text = f"compute capability {version[0]}.{version[1]} has no bf16 units: it is emulated"
        yield Finding(AREA, "precision.dtype=bf16", WARNING, text, "set precision=fp16")


def _rollout(config: Config) -> Iterator[Finding]:
    engine = engine_kind(config)
    if engine.package is not None:
        yield _needs(f"rollout.engine={engine.name}", engine.package, engine.install)
    elif not engine.in_ranks:
        yield Finding(AREA, f"rollout.engine={engine.name}", NOTE, "it is needed where its servers run")


def _reward(config: Config) -> Iterator[Finding]:
    for reward in parts_of(config.reward):
        kind = kind_of(reward)
        if kind.package is not None:
            yield _needs(f"reward.kind={kind.name}", kind.package, kind.install)
        if reward.function is not None and kind.takes == "function":
            module = reward.function.partition(":")[0]
            fix = f"put {module} where Python finds it: the working folder or PYTHONPATH"
            yield _needs(f"reward.function={reward.function}", module, fix)
        for url in kind.servers(reward):
            yield _listens(f"reward.kind={kind.name}", url)


def _kernels(config: Config) -> Iterator[Finding]:
    choice = config.train.log_prob_kernels
    if choice == "triton":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        yield _try(f"train.log_prob_kernels={choice}", lambda: select_kernels(choice, device, torch.float32))


def _loggers(config: Config) -> Iterator[Finding]:
    for kind in DESTINATIONS:
        if kind.is_wanted(config.logger):
            yield _needs(f"logger.{kind.key}", kind.package, kind.install)


def _model(config: Config) -> Iterator[Finding]:
    path, subject = config.model.hf_path, "model.hf_path"
    if (gguf := find_gguf(Path(path), subject)) is not None:
        yield Finding(AREA, subject, OK, f"{gguf} is a GGUF file")
        for module in ("gguf", "accelerate"):
            yield _needs(subject, module, "pip install 'sppo-megatron[gguf]'")
    elif Path(path).is_dir():
        there = Path(path, "config.json").is_file()
        text = f"{path} holds a model" if there else f"{path} has no config.json"
        yield Finding(AREA, subject, OK if there else PROBLEM, text, None if there else "give a model's folder")
    elif path.startswith((".", "/")):
        yield Finding(AREA, subject, PROBLEM, f"{path} does not exist", "give a model's folder or its hub id")
    elif os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        text = f"{path} is taken for a hub id, and HF_HUB_OFFLINE is set: only what is cached is found"
        yield Finding(AREA, subject, WARNING, text, "download it first, or unset HF_HUB_OFFLINE")
    else:
        yield Finding(AREA, subject, NOTE, f"{path} is taken for a hub id: every node must reach the hub or its cache")


def _needs(subject: str, module: str, fix: str) -> Finding:
    try:
        found = find_spec(module) is not None
    except (ImportError, ValueError) as error:
        return Finding(AREA, subject, PROBLEM, f"{module} can't be found: {error}", fix)
    if found:
        return Finding(AREA, subject, OK, f"{module} is there")
    return Finding(AREA, subject, PROBLEM, f"{module} isn't installed", fix)


def _listens(subject: str, url: str) -> Finding:
    """Whether a server can be connected to; nothing is asked of it."""
    address = urlsplit(url)
    try:
        port = address.port or {"https": 443}.get(address.scheme, 80)
        socket.create_connection((address.hostname or "", port), CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        return Finding(AREA, subject, PROBLEM, f"{url} can't be reached: {error}", "start the server, or mend its URL")
    return Finding(AREA, subject, OK, f"{url} takes connections")


def _try(subject: str, action: Callable[[], object]) -> Finding:
    try:
        action()
    except ValueError as error:
        return Finding(AREA, subject, PROBLEM, str(error))
    return Finding(AREA, subject, OK, "runs here")
