"""The model card of a run: base model, data, objective, curves, evaluation with intervals, command and versions."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from sppo_megatron.config import all_keys
from sppo_megatron.objective.registry import objective_class
from sppo_megatron.train.provenance import read_starts
from sppo_report.card_picture import draw
from sppo_report.curves import curves
from sppo_report.run_folder import Run, finite
from sppo_report.summary import summary_rows

PICTURE = "curves.svg"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_OF_SAMPLES = re.compile(r"eval_(pass|maj)_at_\d+")
_OF_A_MACHINE = re.compile(r"(^|\.)(path|output_dir|load|urls|cache_path|sync_folder)$|_path$")


@dataclass(frozen=True)
class Card:
    """text: README.md. picture: PICTURE, which the text shows."""

    text: str
    picture: str


def make_card(run: Run, title: str) -> Card:
    """The card of a run, from what its output folder holds. Keys that name paths are left out of the command."""
    shown = [
        ("Reward", "reward_mean"),
        ("Held-out reward", "eval_reward_mean"),
        ("Held-out, right", "eval_exact_match"),
    ]
    known = curves(run)
    picture = draw([(label, known[name]) for label, name in shown if name in known])
    head = yaml.safe_dump(_front_matter(run), sort_keys=False, allow_unicode=True)
    sections = [
        f"---\n{head}---\n\n# {title}\n\n{_what(run)}",
        f"## Objective\n\n{_objective(run)}",
        f"## Evaluation\n\n{_evaluation(run)}",
        f"## Training\n\n![Curves]({PICTURE})\n\n{_summary(run)}",
        f"## How it was made\n\n{_command(run)}\n\n{_starts(run)}",
    ]
    return Card("\n\n".join(sections) + "\n", picture)


def _front_matter(run: Run) -> dict[str, Any]:
    base = str(run.config.get("model.hf_path", ""))
    paths = (str(path).partition(":")[0] for path in _data(run).values())  # without the configuration's name
    datasets = [path for path in dict.fromkeys(paths) if _HUB_ID.fullmatch(path)]
    return {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        **({"base_model": base} if _HUB_ID.fullmatch(base) else {}),
        **({"datasets": datasets} if datasets else {}),
        "tags": ["sppo", "preference-optimization", "sppo_megatron"],
    }


def _what(run: Run) -> str:
    base = str(run.config.get("model.hf_path", "an unknown model"))
    name = base if _HUB_ID.fullmatch(base) else base.rstrip("/").rpartition("/")[2]
    steps = run.steps[-1]["step"] if run.steps else 0
    samples, reward = (run.config.get(key, "?") for key in ("rollout.num_samples_per_prompt", "reward.kind"))
    sources = ", ".join(f"`{name}`" for name in _data(run) if name)
    return (
        f"Trained from `{name}` by self-play preference optimization with `sppo_megatron`: {len(run.by_iteration())} "
        f"iterations, {steps} optimizer steps. In each iteration the policy answered prompts"
        f"{f' of {sources}' if sources else ''} {samples} times each; the reward was `{reward}`."
    )


def _data(run: Run) -> dict[str, Any]:
    """{name of a source: its path}; of data.train_path alone {"": path}."""
    sources = run.config.get("data.sources") or [{"name": "", "path": run.config.get("data.train_path") or ""}]
    return {source["name"]: source["path"] for source in sources}


def _objective(run: Run) -> str:
    keys = {key.partition(".")[2]: value for key, value in run.config.items() if key.startswith("objective.")}
    about = inspect.getdoc(inspect.getmodule(objective_class(keys))) or ""
    changed = ", ".join(f"`{key}={_written(value)}`" for key, value in _changed(run) if key.startswith("objective."))
    return about.partition("\n")[0] + (f"\n\nSettings: {changed}." if changed else "")


def _evaluation(run: Run) -> str:
    """Before, at the end and at best, with the 95% intervals that were logged."""
    if not run.evaluations:
        return "The run had no held-out prompts."
    sampled = sorted({name for line in run.evaluations for name in line if _OF_SAMPLES.fullmatch(name)}, key=len)
    wanted = ("eval_reward_mean", "eval_exact_match", *sampled, "eval_win_rate_initial")
    names = [name for name in wanted if _have(run, name)]
    lines = {"before": run.evaluations[0], "at the end": run.evaluations[-1]}
    rows = [
        f"| `{name}` | "
        + " | ".join(_with_interval(line, name) for line in lines.values())
        + f" | {_best(run, name)} |"
        for name in names
    ]
    return "\n".join(["| on held-out prompts | " + " | ".join(lines) + " | best |", "|---|---|---|---|", *rows])


def _have(run: Run, name: str) -> bool:
    return any(finite(line.get(name)) is not None for line in run.evaluations)


def _with_interval(line: Mapping[str, Any], name: str) -> str:
    value, low, high = (finite(line.get(name + end)) for end in ("", "_low", "_high"))
    if value is None:
        return ""
    return f"{value:.3f}" + (f" ({low:.3f} to {high:.3f})" if low is not None and high is not None else "")


def _best(run: Run, name: str) -> str:
    values = {line["eval_step"]: value for line in run.evaluations if (value := finite(line.get(name))) is not None}
    step = max(values, key=values.__getitem__)
    return f"{values[step]:.3f} at step {step}"


def _summary(run: Run) -> str:
    rows = [f"| {row['label']} | {row['values'][0]} |" for row in summary_rows([run])]
    return "\n".join(["| | |", "|---|---|", *rows])


def _command(run: Run) -> str:
    starts = read_starts(run.folder)
    ranks = starts[-1]["ranks"] if starts else 1
    words = [shlex.quote(f"{key}={_written(value)}") for key, value in _changed(run)]
    launcher = "python" if ranks == 1 else f"torchrun --nproc-per-node {ranks}"
    text = " \\\n    ".join([f"{launcher} -m sppo_megatron.train", *words])
    return f"Every setting that isn't the default, with the paths left to you:\n\n```bash\n{text}\n```"


def _starts(run: Run) -> str:
    rows = ["| started | ranks | continued from step | versions |", "|---|---|---|---|"]
    for start in read_starts(run.folder):
        step = "" if start["step"] is None else start["step"]
        versions = ", ".join(f"{name} {version}" for name, version in start["versions"].items())
        rows.append(f"| {start['time']} | {start['ranks']} | {step} | {versions}, Python {start['python']} |")
    return "\n".join(rows) if len(rows) > 2 else ""


def _changed(run: Run) -> Iterator[tuple[str, Any]]:
    """Keys whose value isn't the default, in order of declaration; not those that say where something lies."""
    known = all_keys()
    for key, declared in known.items():
        if key in run.config and run.config[key] != declared.default and not _OF_A_MACHINE.search(key):
            yield key, _without_places(run.config[key])


def _without_places(value: Any) -> Any:
    """A value without the entries inside it that say where something lies, as the path of a data source."""
    if isinstance(value, Mapping):
        return {key: _without_places(entry) for key, entry in value.items() if not _OF_A_MACHINE.search(str(key))}
    return [_without_places(entry) for entry in value] if isinstance(value, list) else value


def _written(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
