"""Puts the parts of a run together: process groups, model, engines, scorer, tracker, trainer."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf

from sppo_megatron.batch.training_batch import steps_per_iteration
from sppo_megatron.cluster.consensus import agreed, check_same_config, decided_by_first_rank
from sppo_megatron.cluster.output_lock import OutputLock
from sppo_megatron.config import Config
from sppo_megatron.data.atomic_file import write_atomically
from sppo_megatron.data.digests import model_digest, prompts_digest
from sppo_megatron.engines.base import Engine
from sppo_megatron.errors import ConfigError, TrainingError
from sppo_megatron.hf.hf_config import load_hf_config
from sppo_megatron.hf.hf_folder import resolve_hf_folder
from sppo_megatron.hf.model_class import model_class_name
from sppo_megatron.hf.save import save_hf_folder
from sppo_megatron.hf.side_files import write_side_files
from sppo_megatron.objective.registry import build_objective
from sppo_megatron.policy.checkpoint.folder import check_whole, latest_checkpoint, wait_until_visible
from sppo_megatron.policy.checkpoint.training import WEIGHTS, Checkpointer, check_fits
from sppo_megatron.policy.generate.generator import Generator
from sppo_megatron.policy.initialize import (
    destroy_model_parallel,
    initialize_distributed,
    initialize_model_parallel,
)
from sppo_megatron.policy.model.mapped import MappedModel
from sppo_megatron.policy.model.precision import params_dtype
from sppo_megatron.policy.policy import Policy
from sppo_megatron.policy.step.fp8_probe import build_fp8_probe
from sppo_megatron.policy.step.reference import build_reference
from sppo_megatron.train.evaluation.evaluator import Evaluator
from sppo_megatron.train.evaluation.measures import Right
from sppo_megatron.train.inputs import Inputs, open_model, read_inputs
from sppo_megatron.train.loop import Trainer
from sppo_megatron.train.preemption import PreemptionGuard
from sppo_megatron.train.provenance import note_start
from sppo_megatron.train.resume import SETTINGS, Change, as_begun, find_changes, of_source, settings_of
from sppo_megatron.train.rollout_writer import RolloutWriter
from sppo_megatron.train.rollouts import build_collector, build_engine, build_probe, build_rounds, prompt_stream
from sppo_megatron.train.saving import Saving
from sppo_megatron.train.state import TrainerState
from sppo_megatron.train.tracking.console import ProgressDisplay, print_summary
from sppo_megatron.train.tracking.profiler import Profiler
from sppo_megatron.train.tracking.tracker import Tracker

logger = logging.getLogger(__name__)


@dataclass
class Parts:
    """The pieces that live as long as the job."""

    inputs: Inputs
    policy: Policy
    engine: Engine


@contextlib.contextmanager
def job(config: Config, composed: DictConfig) -> Iterator[Parts]:
    """Joins the process group, reads the inputs, builds the policy; takes all of it down at the end.

    Raises ConfigError on every rank, naming the ranks at fault if it isn't all of them.
    """
    owns_group = not dist.is_initialized()
    initialize_distributed(config.parallelism.distributed_timeout_minutes)
    try:
        check_same_config(composed)
        inputs = agreed(lambda: read_inputs(config))
        if inputs.stored is None:
            agreed(lambda: prompt_stream(config, inputs))  # refused before anything is built
        groups = initialize_model_parallel(config.parallelism, config.train.seed)
        steps = _total_steps(config, inputs)
        engine = build_engine(config, inputs, lambda: _generator(policy))
        try:
            policy = agreed(lambda: Policy(config, inputs.model, groups, steps))
            try:
                yield Parts(inputs, policy, engine)
            finally:
                policy.close()
        finally:
            engine.close()
    finally:
        destroy_model_parallel()
        if owns_group and dist.is_initialized():
            dist.destroy_process_group()


def build_trainer(config: Config, composed: DictConfig, parts: Parts, lock: OutputLock) -> Trainer:
    """The trainer with everything connected, its checkpoint chosen."""
    inputs, policy = parts.inputs, parts.policy
    output_dir, is_main = Path(config.output_dir), dist.get_rank() == 0
    decided_by_first_rank(lambda: check_export(config, inputs))
    rollouts = agreed(lambda: build_rounds(config, inputs, parts.engine, policy.objective))
    settings = decided_by_first_rank(lambda: settings_of(composed, _digests(inputs)))
    resumed_from, state, changes = decided_by_first_rank(lambda: _find_checkpoint(config, inputs, settings))
    begun = None
    if resumed_from is not None:
        agreed(lambda: wait_until_visible(resumed_from))
        if state.has_rollouts:
            begun = agreed(lambda: as_begun(config, changes, resumed_from))
    if is_main:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(output_dir / "config.yaml", OmegaConf.to_yaml(composed, resolve=True))
        note_start(output_dir, dist.get_world_size(), state.step if resumed_from else None)
        if resumed_from is not None:
            logger.info("continuing from %s", "\n  ".join([str(resumed_from), *map(str, changes)]))
    return Trainer(
        config=config,
        policy=policy,
        engine=parts.engine,
        rollouts=rollouts,
        evaluator=_evaluator(config, parts, output_dir / "evaluations" if is_main else None),
        saving=Saving(
            Checkpointer(
                policy,
                output_dir / "checkpoints",
                keep_last=config.checkpoint.keep_last,
                async_save=config.checkpoint.async_save,
                check_folder=lock.check,
                files={SETTINGS: json.dumps(settings, indent=2)},
            ),
            RolloutWriter(output_dir / "rollouts") if is_main else None,
        ),
        tracker=Tracker(
            output_dir,
            config.logger,
            enabled=is_main,
            resume_step=state.step if resumed_from else None,
            run_config=OmegaConf.to_container(composed, resolve=True),  # type: ignore[arg-type]
        ),
        display=ProgressDisplay(config.train.iterations, state.iteration, enabled=is_main and config.logger.progress),
        profiler=Profiler(config.profiler, output_dir, dist.get_rank()),
        state=state,
        resumed_from=resumed_from,
        begun=begun,
        preemption=PreemptionGuard(policy.device),
        fp8_probe=build_fp8_probe(policy, config.precision),
        reference=build_reference(policy, lambda path: _open_policy(config, path)),
        probe=build_probe(config, inputs, parts.engine),
    )


def export_policy(config: Config, parts: Parts) -> None:
    """Writes output_dir/hf: weights, config and tokenizer in Hugging Face format. Collective.

    Raises TrainingError, with the command that makes up for it from the last checkpoint, if the disk doesn't take it.
    """
    tensors = parts.policy.export_weights()
    if dist.get_rank() == 0:
        folder = Path(config.output_dir) / "hf"
        try:
            everything = chain(tensors, parts.inputs.untrained_tensors())
            save_hf_folder(folder, everything, _exported_config(config, parts.inputs), parts.inputs.folder)
        except Exception as error:
            checkpoint = latest_checkpoint(Path(config.output_dir) / "checkpoints")
            advice = (
                f"the training is complete and saved; write {folder} with: sppo convert --to hf --hf-path "
                f"{parts.inputs.folder} --megatron-path {checkpoint and checkpoint / WEIGHTS} --output {folder}"
            )
            if isinstance(error, OSError):
                raise TrainingError(f"the policy could not be exported: {error}; {advice}") from error
            error.add_note(advice)
            raise
    else:
        for _ in tensors:
            pass
    dist.barrier()


def check_export(config: Config, inputs: Inputs) -> None:
    """Tries all of the export but the weights. Raises ConfigError: better now than after the last step."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            write_side_files(Path(folder), _exported_config(config, inputs), inputs.folder)
    except Exception as error:
        raise ConfigError(
            f"the trained policy could not be exported to Hugging Face format: {type(error).__name__}: {error}; fix "
            f"the files in {inputs.folder}"
        ) from error


def _exported_config(config: Config, inputs: Inputs) -> Any:
    hf_config = copy.deepcopy(inputs.hf_config)
    hf_config.dtype = params_dtype(config.precision)
    hf_config.architectures = [model_class_name(hf_config.model_type)]
    return hf_config


def close(trainer: Trainer, parts: Parts) -> None:
    """Ends worker processes, gives signals back and closes files."""
    if trainer.preemption is not None:
        trainer.preemption.close()
    trainer.profiler.close()
    trainer.tracker.close()
    if trainer.saving.rollout_writer is not None:
        trainer.saving.rollout_writer.close()
    parts.inputs.scorer.close()
    trainer.saving.checkpointer.close()


def print_results(config: Config, trainer: Trainer, seconds: float) -> None:
    """On rank 0."""
    if dist.get_rank() != 0:
        return
    hf = Path(config.output_dir) / "hf"
    next_steps = [
        ("metrics", f"{config.output_dir}/metrics.jsonl, or: tensorboard --logdir {config.output_dir}/tensorboard"),
        ("the trained policy, in Hugging Face format", str(hf)),
        ("continue from it", f"python -m sppo_megatron.train model.hf_path={hf} output_dir=outputs/next ..."),
    ]
    state = trainer.state
    print_summary(state.evaluation_before, state.evaluation_last, config.output_dir, next_steps, seconds=seconds)


def _total_steps(config: Config, inputs: Inputs) -> int:
    """Optimizer steps of the whole run, for the learning-rate schedule; with pairs, as if every group had one."""
    size, epochs = config.train.minibatch_size, config.train.epochs_per_iteration
    if inputs.stored is not None:
        groups = [inputs.stored.responses_of_groups(i) for i in range(config.train.iterations)]
    else:
        assert config.train.prompts_per_iteration is not None
        groups = [[config.rollout.num_samples_per_prompt] * config.train.prompts_per_iteration]
        groups *= config.train.iterations
    units = build_objective(vars(config.objective)).units
    counts = [sum(units.sequences_of_group(responses) for responses in group) for group in groups]
    return sum(steps_per_iteration(count, size, epochs) for count in counts)


def _open_policy(config: Config, path: str) -> MappedModel:
    """Another policy of the same architecture, in Hugging Face format."""
    folder = resolve_hf_folder(path)
    hf = replace(config, model=replace(config.model, init="hf"))
    return open_model(hf, folder, load_hf_config(str(folder)))


def _generator(policy: Policy) -> Generator:
    return Generator(policy.chunks, policy.config, policy.groups, policy.model.vocab_size, policy.device)


def _evaluator(config: Config, parts: Parts, folder: Path | None) -> Evaluator | None:
    inputs = parts.inputs
    if not inputs.eval_prompts:
        return None
    collector = build_collector(config, inputs, parts.engine, for_evaluation=True)
    return Evaluator(collector, inputs.eval_scorer, inputs.eval_prompts, folder, right=Right(config.eval.right_reward))


def _digests(inputs: Inputs) -> dict[str, str]:
    data = {of_source(each.source.name): prompts_digest(each.prompts) for each in inputs.sources if each.prompts}
    return {"model": model_digest(inputs.folder)} | data


def _find_checkpoint(
    config: Config, inputs: Inputs, settings: dict[str, Any]
) -> tuple[Path | None, TrainerState, list[Change]]:
    load = config.checkpoint.load
    path = latest_checkpoint(Path(config.output_dir) / "checkpoints") if load == "latest" else load and Path(load)
    if not path:
        return None, TrainerState(), []
    check_whole(path)
    check_fits(path, inputs.model.description(), config.optimizer.use_distributed_optimizer)
    return path, TrainerState.read(path), find_changes(path, settings)
