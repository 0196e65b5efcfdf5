"""Two data sources in one run by the real command: their proportions, their metrics, and other weights on a resume."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from sppo_megatron.data.rollout_file import read_groups
from tests.integration import tiny_task


def arguments_of(
    task: Path, output: Path, weights: tuple[float, float], rewards: tuple[str, str] = ("", ""), **changes: object
) -> list[str]:
    ways = [f"name: {name}, path: {task}/{name}.jsonl{more}" for name, more in zip("ab", rewards, strict=True)]
    entries = [f"{{{way}, weight: {w}}}" for way, w in zip(ways, weights, strict=True)]
    held_out = [f"{{{way}}}" for way in ways]
    return tiny_task.overrides(
        task,
        output,
        **{
            "data.train_path": "null",
            "data.eval_path": "null",
            "data.sources": f"[{', '.join(entries)}]",
            "data.eval_sources": f"[{', '.join(held_out)}]",
            **changes,
        },
    )


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_task.make_task(tmp_path_factory.mktemp("sources") / "task")
    lines = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "a.jsonl").write_text("".join(lines[:20]))
    (folder / "b.jsonl").write_text("".join(lines[20:]))
    return folder


def drawn(output: Path) -> list[list[tuple[str | None, int]]]:
    files = sorted((output / "rollouts").iterdir())
    return [[(group.prompt.source, group.prompt.index) for group in read_groups(file)] for file in files]


def test_two_sources(task: Path) -> None:
    output = task.parent / "run"
    done = tiny_task.run(arguments_of(task, output, (2, 1), **{"train.iterations": 2}))
    assert done.returncode == 0, done.stderr[-4000:]
    assert [Counter(name for name, _ in each) for each in drawn(output)] == [{"a": 4, "b": 2}] * 2
    for line in tiny_task.steps(output):
        mean = (2 * line["reward_mean/a"] + line["reward_mean/b"]) / 3
        assert 0 <= min(line["reward_mean/a"], line["reward_mean/b"]) <= mean <= 1
    for line in tiny_task.evaluations(output):
        mean = (20 * line["eval_reward_mean/a"] + 12 * line["eval_reward_mean/b"]) / 32
        assert line["eval_reward_mean"] == pytest.approx(mean)

    rewards = (", reward: exact", ", reward: [{name: exact, weight: 2.0}, {name: share, weight: 0.5}]")
    named = {"reward.kind": "named", "reward.named": "{exact: {kind: exact_match}, share: {kind: character_share}}"}
    more = arguments_of(task, output, (1, 5), rewards, **{"train.iterations": 3}, **named)
    done = tiny_task.run([*more, "checkpoint.load=latest"])
    assert done.returncode == 0, done.stderr[-4000:]
    assert "data.sources:" in done.stderr and "from the next iteration" in done.stderr
    each = drawn(output)
    assert Counter(name for name, _ in each[2]) == {"a": 1, "b": 5}
    groups = read_groups(sorted((output / "rollouts").iterdir())[2])
    assert {str(group.prompt.rewards) for group in groups} == {"{'exact': 1.0}", "{'exact': 2.0, 'share': 0.5}"}
    line = tiny_task.steps(output)[-1]
    exact, share = line["named_reward_mean/exact"], line["named_reward_mean/share"]
    exact_of_b = (6 * exact - line["reward_mean/a"]) / 5  # of six prompts one is of a
    assert line["reward_mean/b"] == pytest.approx(2 * exact_of_b + 0.5 * share) and share > 0
    of_b = [index for name, index in each[0] + each[1] + each[2] if name == "b"]
    assert len(set(of_b)) == len(of_b) == 9, "its prompts go on where they stood"

    with open(task / "b.jsonl", "a") as file:
        file.write('{"prompt": "1", "answer": "1"}\n')
    done = tiny_task.run([*arguments_of(task, output, (1, 5), **{"train.iterations": 4}), "checkpoint.load=latest"])
    assert done.returncode == 2 and "the data source b has other prompts" in done.stderr


def test_every_bad_record_of_every_source(task: Path) -> None:
    (task / "a.jsonl").write_text('{"prompt": 1}\n{"prompt": "1"}\n')
    (task / "b.jsonl").write_text('{"question": "1"}\n')
    done = tiny_task.run(arguments_of(task, task.parent / "bad", (2, 1)))
    assert done.returncode == 2
    for said in ("data.sources.a: ", "line 2: no answer", "data.sources.b: ", "question", "eval_sources.b"):
        assert said in done.stderr, done.stderr[-3000:]
