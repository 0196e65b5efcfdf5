"""Scores for the groups of a rollout file, into another one: rewards, or preferences among the responses."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sppo_megatron.cli.offline.batches import Batches, Shard
from sppo_megatron.cli.offline.write import BatchWriter, Output
from sppo_megatron.cluster.consensus import agreed
from sppo_megatron.cluster.rendezvous import has_launcher
from sppo_megatron.config import Config, RewardConfig
from sppo_megatron.config.named_rewards import named_reward
from sppo_megatron.config.sources import with_rewards_of_sources
from sppo_megatron.data.digests import file_digest, model_digest
from sppo_megatron.data.rollout_file import iterate_groups
from sppo_megatron.errors import ConfigError, TrainingError
from sppo_megatron.hf.hf_folder import resolve_hf_folder
from sppo_megatron.hf.tokenizer import decoder, load_tokenizer
from sppo_megatron.rewards.choices import prompt_reader
from sppo_megatron.rewards.registry import build_scorer, parts_of
from sppo_megatron.rewards.scorer import Scorer, ScoringError, score_over_ranks
from sppo_megatron.rewards.text import Decode
from sppo_megatron.types import Group, Prompt

# Where and how it is asked, which may be another way after a kill.
_NOT_OF_THE_REWARD = ("timeout_s", "num_workers", "max_failed_share")
_NOT_OF_THE_JUDGE = ("urls", "api_key_env", "concurrency", "timeout_s", "retries", "backoff_s", "cache_path")


def score_file(config: Config, source: Path, output: Output, batch_size: int, shard: Shard) -> None:
    """Every group of `source` as config.reward scores it, in file order.

    Under torchrun the ranks share each batch; alone there is no process group. batch_size: groups scored and written
    together. model.hf_path's tokenizer is read if there is a path, for groups without texts.

    Raises ConfigError, the same on every rank, for what can't be read or scored, and TrainingError if too
    little of a batch could be scored.
    """
    with _process_group():
        decode = agreed(lambda: _decoder(config.model.hf_path))
        reward = with_rewards_of_sources(config.reward, config.data)
        scorer = agreed(lambda: build_scorer(reward, decode))
        try:
            needs_answer = scorer.needs_answer
            num_groups = agreed(lambda: _check_groups(source, decode is None, needs_answer, prompt_reader(reward)))
            batches = Batches(num_groups, batch_size, shard)
            writer = BatchWriter(output, agreed(lambda: scoring_settings(config, source)), batches)
            first = batches.first_item
            reader = _Reader(source, first, first + batches.num_items)

            def score(batch: int) -> tuple[list[Group], dict[str, float]]:
                groups = score_batch(scorer, reader.read(batches.items(batch)), config.reward.max_failed_share)
                rewards = [float(response.reward or 0.0) for group in groups for response in group.responses]
                return groups, {"reward_mean": sum(rewards) / max(1, len(rewards))}

            writer.write(score)
        finally:
            scorer.close()


def scoring_settings(config: Config, source: Path) -> dict[str, Any]:
    """What decides the scores: see ResumableFile."""
    return {
        "command": "score",
        "input": file_digest(source),
        **reward_settings(config),
        "model.hf_path": config.model.hf_path,
    }


def reward_settings(config: Config) -> dict[str, Any]:
    """What decides the score of a response."""
    reward = with_rewards_of_sources(config.reward, config.data)
    paths = [
        path
        for part in parts_of(reward)
        for path in (part.opponents, part.judge.template, part.model.template, part.model.path)
    ]
    return {"reward": _identity(reward), "reward files": [_path_digest(path) for path in paths]}


def _identity(reward: RewardConfig) -> dict[str, Any]:
    identity = {key: value for key, value in asdict(reward).items() if key not in _NOT_OF_THE_REWARD}
    identity["judge"] = {key: value for key, value in identity["judge"].items() if key not in _NOT_OF_THE_JUDGE}
    identity["named"] = {name: _identity(named_reward(reward, name)) for name in reward.named}
    return identity


def _path_digest(path: str | None) -> str | None:
    if path is None or not Path(path).exists():
        return path
    return model_digest(Path(path)) if Path(path).is_dir() else file_digest(path)


def score_batch(scorer: Scorer, groups: list[Group], max_failed_share: float) -> list[Group]:
    """New groups with their scores. Raises TrainingError if more than max_failed_share failed."""
    try:
        return score_over_ranks(scorer, groups, max_failed_share)
    except ScoringError as error:
        raise TrainingError(
            f"the reward {error.what} of a batch (reward.max_failed_share={max_failed_share:g}): {error.why}. Finished "
            "batches are kept: fix it and give the same command again"
        ) from error


class _Reader:
    """Reads a file's groups from `start` to `stop` once, in order; what is skipped isn't read again."""

    def __init__(self, path: Path, start: int, stop: int) -> None:
        self._groups = iterate_groups(path, start, stop)
        self._next = start

    def read(self, places: range) -> list[Group]:
        """The groups of these places, which lie behind those of the last call."""
        skipped = places.start - self._next
        groups = [next(self._groups) for _ in range(skipped + len(places))]
        self._next = places.stop
        return groups[skipped:]


def _check_groups(source: Path, needs_text: bool, needs_answer: bool, accept: Callable[[Prompt], Prompt]) -> int:
    """How many groups there are. Raises ConfigError for a broken line, no groups, or what is needed and missing."""
    count = 0
    for group in iterate_groups(source):
        count += 1
        has_texts = group.prompt.text is not None and all(response.text is not None for response in group.responses)
        if needs_text and not has_texts:
            raise ConfigError(
                f"{source}, group {count} has token ids without texts: give model.hf_path=FOLDER, whose tokenizer "
                "decodes them"
            )
        if needs_answer and group.prompt.answer is None:
            raise ConfigError(f"{source}, group {count} has no answer, which this reward.kind compares with")
        try:
            accept(group.prompt)
        except ValueError as error:
            raise ConfigError(f"{source}, group {count}: {error}") from None
    if not count:
        raise ConfigError(f"{source} has no groups")
    return count


def _decoder(hf_path: str) -> Decode | None:
    if not hf_path:
        return None
    tokenizer = load_tokenizer(resolve_hf_folder(hf_path))
    if tokenizer is None:
        raise ConfigError(f"model.hf_path={hf_path} has no tokenizer: give a folder that has one")
    return decoder(tokenizer)


@contextlib.contextmanager
def _process_group() -> Iterator[None]:
    """Under torchrun, gloo: what the ranks exchange are small objects of the host. Alone, nothing."""
    if not has_launcher() or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
