"""A run in a few numbers, and runs side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from sppo_report.curves import SECONDS, Curve, curves
from sppo_report.findings.sustained import log_ratio_rms
from sppo_report.findings.windows import WINDOW, Value, iteration_means, metric
from sppo_report.run_folder import Run, finite

# What is worth knowing of the configuration before one reads the rest of it.
HEADLINES = (
    "model.hf_path",
    "objective.eta",
    "objective.tau",
    "objective.reward",
    "objective.baseline",
    "objective.pairwise",
    "reward.kind",
    "rollout.engine",
    "rollout.num_samples_per_prompt",
    "train.prompts_per_iteration",
    "train.minibatch_size",
    "optimizer.lr",
    "precision.dtype",
    "parallelism.tensor_model_parallel_size",
    "parallelism.pipeline_model_parallel_size",
    "parallelism.context_parallel_size",
    "parallelism.expert_model_parallel_size",
)


def summary_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A label and one text for each run, empty if the run doesn't have it; rows that no run has are left out."""
    rows = [{"label": label, "values": [value(run) for run in runs]} for label, value in _ROWS]
    return [row for row in rows if any(row["values"])]


def config_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Every key of the configurations with one text for each run. differs: not the same in all of them."""
    rows = []
    for key in dict.fromkeys(key for run in runs for key in run.config):
        values = [_config_text(run.config[key]) if key in run.config else "" for run in runs]
        differs = len(set(values)) > 1 and key != "output_dir"
        rows.append({"label": key, "values": values, "differs": differs, "headline": key in HEADLINES})
    return rows


def stage_seconds(by_metric: Mapping[str, Curve]) -> dict[str, float]:
    """Seconds of the whole run by stage, the longest first."""
    totals = {
        name.removeprefix(SECONDS).replace("_", " "): sum(curve.values)
        for name, curve in by_metric.items()
        if name.startswith(SECONDS)
    }
    return dict(sorted(totals.items(), key=lambda item: -item[1]))


def _config_text(value: object) -> str:
    """As it is written in YAML and on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _iterations(run: Run) -> str:
    done = len(run.by_iteration())
    planned = finite(run.config.get("train.iterations"))
    return f"{done} of {planned:.0f}" if planned is not None and done < planned else str(done or "")


def _steps(run: Run) -> str:
    return str(run.steps[-1]["step"]) if run.steps else ""


def _first_to_last(value: Value, style: str = ".3g", *, after_first_step: bool = False) -> Callable[[Run], str]:
    """style: how a number is written, as in a format string."""

    def text(run: Run) -> str:
        values = list(iteration_means(run, value, after_first_step=after_first_step).values())
        width = min(WINDOW, max(1, len(values) // 2))
        return _arrow(fmean(values[:width]), fmean(values[-width:]), style) if values else ""

    return text


def _arrow(before: float, after: float, style: str) -> str:
    return f"{before:{style}} → {after:{style}}".replace("-", "−")


def _before_to_after(name: str) -> Callable[[Run], str]:
    def text(run: Run) -> str:
        values = {line["eval_step"]: value for line in run.evaluations if (value := finite(line.get(name))) is not None}
        if not values:
            return ""
        before, after = values[min(values)], values[max(values)]
        best = max(values, key=values.__getitem__)
        peak = f", best {values[best]:.3g} at step {best}" if values[best] > after else ""
        return _arrow(before, after, ".3g") + peak

    return text


def _total_time(run: Run) -> str:
    seconds = round(sum(stage_seconds(curves(run)).values()))
    hours, minutes = divmod(seconds // 60, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds % 60:02d} s" if seconds else ""


def _speed(run: Run) -> str:
    values = [value for line in run.steps if (value := finite(line.get("tokens_per_second"))) is not None]
    return f"{median(values):,.0f}" if values else ""


_ROWS: tuple[tuple[str, Callable[[Run], str]], ...] = (
    ("Iterations", _iterations),
    ("Optimizer steps", _steps),
    ("Reward", _first_to_last(metric("reward_mean"))),
    ("Reward in the evaluation", _before_to_after("eval_reward_mean")),
    ("Exact match in the evaluation", _before_to_after("eval_exact_match")),
    ("Root mean square of s, nats", _first_to_last(log_ratio_rms)),
    ("R²", _first_to_last(metric("r_squared"), ".2f", after_first_step=True)),
    ("Entropy, nats per token", _first_to_last(metric("entropy"))),
    ("Response length, tokens", _first_to_last(metric("response_length_mean"))),
    ("Truncated", _first_to_last(metric("truncation_rate"), ".1%")),
    ("Degenerate groups", _first_to_last(metric("degenerate_group_share"), ".1%")),
    ("Mismatch per token, nats", _first_to_last(metric("rollout_log_prob_diff_mean"), ".1e")),
    ("Time in the stages", _total_time),
    ("Training, tokens/s (median)", _speed),
)
