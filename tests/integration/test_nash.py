"""Self-play on known games, by the real command: the average policy is the Nash mix, the policy the best response.

A response is one token and means a move. The win-rate objective with the log-partition baseline makes each iteration a
step of multiplicative weights, π_{t+1} ∝ π_t exp(η P(y ≻ π_t)), and summing log π_{t+1} − log π_t over T of them gives

    P(y ≻ π̄) − ½ = log(π_T(y) / π_0(y)) / (η T) + mean_t (log Z_t / η − ½)

for the average policy π̄ (Freund and Schapire 1999). The first term is at most log(1 / π_0(y)) / (η T), the second about
η/2 times the variance of the win rates under π_t; so the duality gap, the largest left side, falls to a small constant.
The last policy has no such property: without a best response it circles around the Nash mix, further and further out.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from tests.integration import tiny_task
from tests.stored_rollouts import read_records

IS_LONG = os.environ.get("SPPO_NASH_LONG") == "1"
ITERATIONS, ETA, GAP = (600, 0.5, 0.015) if IS_LONG else (160, 1.0, 0.03)  # of the game without a best response
MOVES = {"rock": "0123", "paper": "456", "scissors": "789"}  # any other token is no move
# The probability above ½ that the row wins: rock beats paper, paper scissors, scissors rock, and all of them no move.
CYCLE = 0.5 + np.array(
    [
        [0.00, 0.45, -0.30, 0.4],
        [-0.45, 0.00, 0.15, 0.4],
        [0.30, -0.15, 0.00, 0.4],
        [-0.40, -0.40, -0.40, 0.0],
    ]
)
SCORES = np.array([0.0, 2.0, 1.0, -1.0])
TRANSITIVE = 1 / (1 + np.exp(SCORES[None, :] - SCORES[:, None]))  # Bradley–Terry: σ(score_i − score_j)


def move_of(text: str) -> int:
    """0 to 2 as in MOVES, 3 for no move."""
    return next((number for number, digits in enumerate(MOVES.values()) if text and text in digits), 3)


def cycle(prompt: str, first: str, second: str, answer: str | None) -> float:
    """A reward.function: it runs in the command's worker processes."""
    return float(CYCLE[move_of(first), move_of(second)])


def transitive(prompt: str, first: str, second: str, answer: str | None) -> float:
    return float(TRANSITIVE[move_of(first), move_of(second)])


def nash_mix() -> np.ndarray:
    """Of three moves that beat each other in a circle, each has the weight by which the other two differ."""
    weights = np.array([CYCLE[1, 2], CYCLE[2, 0], CYCLE[0, 1]]) - 0.5
    return np.append(weights / weights.sum(), 0.0)


def duality_gap(mix: np.ndarray) -> float:
    """max_y P(y ≻ mix) − ½ in the cycle; 0 at the Nash mix alone."""
    return float((CYCLE @ mix).max() - 0.5)


def play(folder: Path, game: str, **changes: object) -> np.ndarray:
    """[iterations, 4]: the share of each move among the samples of π_t, from the rollout files of a run."""
    task = tiny_task.make_task(folder / "task")
    (task / "train.jsonl").write_text('{"prompt": "1="}\n')
    settings = {
        "objective": "sppo_log_partition",
        "objective.eta": 1.0,
        "reward": "pairwise_function",
        "reward.kind": "pairwise_function",
        "reward.function": f"tests.integration.test_nash:{game}",
        "reward.num_workers": 1,
        "data.eval_path": "null",
        "rollout.num_samples_per_prompt": 128,
        "rollout.max_response_length": 1,
        "train.prompts_per_iteration": 1,
        "train.epochs_per_iteration": 8,
        "train.minibatch_size": 128,
        "train.micro_batch_size": 128,
        "optimizer.lr": 5e-4,
        "optimizer.adam_beta1": 0.5,
        "logger.progress": "false",
        **changes,
    }
    done = tiny_task.run(tiny_task.overrides(task, folder / "run", **settings), timeout=3000, cwd=tiny_task.ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    files = sorted((folder / "run" / "rollouts").glob("iteration_*.parquet"))
    return np.stack([shares(file) for file in files])


def shares(file: Path) -> np.ndarray:
    [group] = read_records(file)
    moves = [move_of(response["text"]) for response in group["responses"]]
    return np.bincount(moves, minlength=4) / len(moves)


def test_the_mix_is_nash() -> None:
    """No move beats it, the three moves of its support tie with it, and the uniform mix is not one."""
    mix = nash_mix()
    np.testing.assert_allclose((CYCLE @ mix)[:3], 0.5, atol=1e-15)
    assert (CYCLE @ mix)[3] < 0.5 and duality_gap(np.array([1, 1, 1, 0]) / 3) > GAP
    np.testing.assert_allclose(mix, [1 / 6, 1 / 3, 1 / 2, 0], atol=1e-15)


def test_the_average_policy_of_a_cycle_is_nash(tmp_path: Path) -> None:
    policies = play(tmp_path, "cycle", **{"train.iterations": ITERATIONS, "objective.eta": ETA})
    average = policies.mean(axis=0)
    gap, distance = duality_gap(average), np.abs(average - nash_mix()).max()
    lasts = [duality_gap(policy) for policy in policies[-20:]]
    print(f"\naverage of {ITERATIONS} policies {average.round(3)}, Nash {nash_mix().round(3)}: gap {gap:.4f}, ", end="")
    print(f"distance {distance:.3f}; gaps of the last 20 policies alone: {min(lasts):.3f} to {max(lasts):.3f}")
    assert duality_gap(policies[0]) > 5 * GAP, "it must not begin where it is to end"
    assert gap < GAP and distance < 0.12
    assert np.mean(lasts) > 2 * GAP, "the policies themselves circle: only their average is the solution"
    [*_, last] = tiny_task.steps(tmp_path / "run")
    assert last["pairwise_function_failed"] == 0 and last["reward_errors"] == 0


def test_the_policy_of_a_transitive_preference_is_the_best_response(tmp_path: Path) -> None:
    policies = play(tmp_path, "transitive", **{"train.iterations": 30})
    best = int(SCORES.argmax())
    print(f"\nthe best response: {policies[0, best]:.3f} at first, {policies[-5:, best].mean():.3f} at last")
    assert policies[0, best] < 0.3
    assert policies[-5:, best].mean() > 0.9
