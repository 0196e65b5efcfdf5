"""Numbers of the runs, side by side, by hand."""

from sppo_report.curves import curves
from sppo_report.summary import config_rows, stage_seconds, summary_rows


def values_of(rows):
    return {row["label"]: row["values"] for row in rows}


def test_summary(make_run, steps_of):
    lines = steps_of(
        12,
        per_iteration=2,
        reward_mean=lambda iteration, place: float(iteration),
        r_squared=lambda iteration, place: -0.25 * place,
        truncation_rate=0.125,
        tokens_per_second=lambda iteration, place: 1000.0 + 500 * place,
        seconds_train=40.0,
        seconds_rollout=220.0,
    )
    scores = {0: 0.5, 12: 0.75, 24: 0.625}
    evaluations = [{"eval_step": step, "eval_reward_mean": score} for step, score in scores.items()]
    first = make_run([*evaluations, *lines], config="train: {iterations: 20}", name="first")
    second = make_run(steps_of(12, reward_mean=0.5), config="train: {iterations: 12}", name="second")
    found = values_of(summary_rows([first, second]))
    short = make_run(steps_of(3, reward_mean=lambda iteration, place: float(iteration)), name="short")
    assert values_of(summary_rows([short]))["Reward"] == ["0 → 2"]
    assert found == {
        "Iterations": ["12 of 20", "12"],
        "Optimizer steps": ["24", "12"],
        "Reward": ["2 → 9", "0.5 → 0.5"],  # means of iterations 0–4 and 7–11
        "Reward in the evaluation": ["0.5 → 0.625, best 0.75 at step 12", ""],
        "R²": ["−0.25 → −0.25", ""],  # without the first step of each iteration
        "Truncated": ["12.5% → 12.5%", ""],
        "Time in the stages": ["1 h 00 min", ""],
        "Training, tokens/s (median)": ["1,250", ""],
    }


def test_stages_by_their_time(make_run, steps_of):
    run = make_run(steps_of(3, per_iteration=4, seconds_train=2.0, seconds_log_probs=1.0, seconds_rollout=30.0))
    found = stage_seconds(curves(run))
    assert list(found.items()) == [("rollout", 90.0), ("train", 24.0), ("log probs", 3.0)]


def test_configurations_side_by_side(make_run):
    first = make_run(config="optimizer: {lr: 1.0e-6}\nmodel: {hf_path: null}\noutput_dir: a", name="first")
    second = make_run(
        config="optimizer: {lr: 2.0e-6}\nmodel: {hf_path: null, extra: true}\noutput_dir: b", name="second"
    )
    rows = {row["label"]: row for row in config_rows([first, second])}
    assert rows["optimizer.lr"] == {
        "label": "optimizer.lr", "values": ["1e-06", "2e-06"], "differs": True, "headline": True,
    }  # fmt: skip
    assert rows["model.extra"]["values"] == ["", "true"] and rows["model.extra"]["differs"]
    assert rows["model.hf_path"]["values"] == ["null", "null"] and not rows["model.hf_path"]["differs"]
    assert not rows["output_dir"]["differs"]
