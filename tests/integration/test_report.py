"""The report of a real run, made by the real command and looked at in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration import tiny_task
from tests.integration.chromium import EXECUTABLE, Page
from tests.stored_rollouts import read_records, rollout_path

HOSTILE = '</script><script>window.hacked = 1</script><img src="x" onerror="window.hacked = 1">'
in_browser = pytest.mark.skipif(EXECUTABLE is None, reason="no chromium on the PATH: make test-report installs it")


def report(output: Path, *runs: Path) -> str:
    """What the command prints."""
    command = [sys.executable, "-m", "sppo_megatron.cli.main", "report", *map(str, runs), "--output", str(output)]
    done = subprocess.run(command, env=tiny_task.environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def read_groups(run: Path, iteration: int) -> list[dict[str, Any]]:
    if (path := rollout_path(run, iteration)).exists():
        return read_records(path)
    lines = path.with_suffix(".jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def differences(response: dict[str, Any]) -> list[float]:
    old, rollout = response["old_log_probs"], response["rollout_log_probs"]
    return [a - b for a, b in zip(old, rollout, strict=True)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    task = tiny_task.make_task(folder / "task")
    done = tiny_task.run(tiny_task.overrides(task, folder / "run", **{"eval.interval": 1}))
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "run"


@pytest.fixture(scope="module")
def hostile(run: Path) -> Path:
    """The same run with markup in every text, and the trainer's log-probs a little off the sampler's."""
    folder = run.parent / "<img src=x onerror=window.hacked=1>"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("hf", "checkpoints"))
    for path in (folder / "rollouts").iterdir():
        groups = read_records(path)
        path.unlink()
        for group in groups:
            group |= {"prompt": HOSTILE, "answer": HOSTILE}
            for response in group["responses"]:
                response |= {"text": HOSTILE, "error": HOSTILE, "finish_reason": HOSTILE, "policy_version": HOSTILE}
                response["old_log_probs"] = [value + 0.125 for value in response["rollout_log_probs"]]
        path.with_suffix(".jsonl").write_text("\n".join(map(json.dumps, groups)) + "\n" + HOSTILE)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 10, "iteration": 3, HOSTILE: 1.0}) + "\n")
    (folder / "config.yaml").write_text(json.dumps({"objective": {"reward": HOSTILE, HOSTILE: 1}, "x": [HOSTILE]}))
    return folder


@pytest.fixture(scope="module")
def one(run: Path) -> Path:
    path = run.parent / "one.html"
    report(path, run)
    return path


@pytest.fixture(scope="module")
def both(run: Path, hostile: Path) -> Path:
    path = run.parent / "both.html"
    report(path, run, hostile)
    return path


@pytest.fixture
def desktop(tmp_path: Path) -> Iterator[Page]:
    with Page(tmp_path / "profile") as page:
        yield page


def test_the_report_of_a_run_without_a_browser(run: Path, one: Path) -> None:
    printed = report(one, run)
    assert "9 optimizer steps" in printed and "of 3 of 3 rollout files" in printed
    text = one.read_text().partition('<script type="application/json" id="data">')[2].partition("</script>")[0]
    (shown,) = json.loads(text)["runs"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = {name for line in lines for name in line} - {"step", "iteration", "eval_step", "eval_iteration"}
    assert shown["curves"].keys() | {"win_rate_mean"} == logged
    for iteration in shown["iterations"]:
        responses = [response for group in read_groups(run, iteration["iteration"]) for response in group["responses"]]
        scores = [sample["scores"][sample["place"] - 1] for sample in iteration["samples"]]
        assert max(scores) == max(response["reward"] for response in responses)
        assert min(scores) == min(response["reward"] for response in responses)
        mismatches = [abs(sum(differences(response))) for response in responses]
        assert max(sample["mismatch"] for sample in iteration["samples"]) == pytest.approx(max(mismatches))
        for sample in iteration["samples"]:
            response = read_groups(run, iteration["iteration"])[sample["group"] - 1]["responses"][sample["place"] - 1]
            assert sample["differences"] == pytest.approx(differences(response), rel=1e-3)
            # The model's vocabulary is padded beyond the tokenizer's, and the text has no special tokens.
            assert re.sub(r"<[^>]*>|\[\d+\]", "", "".join(sample["token_texts"])) == sample["text"]


@in_browser
def test_draws_every_curve_and_asks_for_nothing(run: Path, one: Path, desktop: Page) -> None:
    desktop.open(one)
    assert desktop.console == []
    assert desktop.requests == [one.as_uri()]
    drawn = desktop.evaluate("""[...document.querySelectorAll(".chart")].map((chart) => ({
        names: [...chart.querySelectorAll(".legend span")].map((node) => node.textContent),
        paths: [...chart.querySelectorAll(".plot path")].map((path) => path.getAttribute("d")),
        height: chart.querySelector(".plot").getBoundingClientRect().height}))""")
    names = [name for chart in drawn for name in chart["names"]]
    data = desktop.evaluate("report.runs[0].curves")
    assert sorted(names) == sorted(data), "every metric has its legend"
    for chart in drawn:
        assert len(chart["paths"]) == len(chart["names"]) and chart["height"] > 100
        for name, path in zip(chart["names"], chart["paths"], strict=True):
            assert path.count("L") + 1 == len(data[name]["steps"]), name
            assert "NaN" not in path and "Infinity" not in path
    last = tiny_task.steps(run)[-1]
    legend = desktop.evaluate("document.querySelector('#chart-loss .legend b').textContent")
    assert float(legend.replace("−", "-")) == pytest.approx(last["loss"], rel=5e-3)


@in_browser
@pytest.mark.parametrize("name", ["one", "both"])
@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_needs_no_sideways_scrolling(
    name: str, dark: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with Page(tmp_path / "profile", 390, 844, is_phone=True, dark=dark) as page:
        page.open(request.getfixturevalue(name))
        assert page.console == []
        widths = page.evaluate("[innerWidth, document.documentElement.scrollWidth, document.body.scrollWidth]")
        assert widths == [390, 390, 390]
        lefts = page.evaluate("[...document.querySelectorAll('.chart, .sample')].map((card) => card.offsetLeft)")
        assert len(lefts) > 20 and len(set(lefts)) == 1, "one column"
        brightness = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
        assert (max(brightness[:3]) < 64) == dark


@in_browser
def test_hostile_text_is_shown_as_text(hostile: Path, both: Path, desktop: Page) -> None:
    desktop.open(both)
    desktop.evaluate("""(() => {
        const select = document.querySelector("#response-browser select");
        select.value = 1;
        select.dispatchEvent(new Event("change"));
        document.querySelector("details").open = true;
    })()""")
    assert desktop.evaluate("[window.hacked === undefined, document.images.length, document.scripts.length]") == [
        True, 0, 2,
    ]  # fmt: skip
    assert desktop.requests == [both.as_uri()] and desktop.console == []
    seen = desktop.evaluate("document.body.innerText")
    for place in (HOSTILE, f"Scoring failed: {HOSTILE}", f"policy version {HOSTILE}", hostile.name):
        assert place in seen
    blocks = desktop.evaluate("[...document.querySelectorAll('.sample pre')].map((block) => block.textContent)")
    assert len(blocks) == blocks.count(HOSTILE) > 10
    titles = desktop.evaluate("[...document.querySelectorAll('.chart h4')].map((node) => node.textContent)")
    assert HOSTILE in titles
    assert "not a JSON object in line 7" in seen


@in_browser
def test_pointer_and_keys_read_the_curves(run: Path, one: Path, desktop: Page) -> None:
    steps = tiny_task.steps(run)
    shown = "document.querySelector('#chart-loss .legend b').textContent"
    desktop.open(one)
    desktop.evaluate("document.querySelector('#chart-loss').scrollIntoView({block: 'center'})")
    left, top, width = desktop.evaluate("""(() => {
        const box = document.querySelector("#chart-loss .plot").getBoundingClientRect();
        return [box.x, box.y, box.width];
    })()""")
    desktop.move_mouse(left + 51, top + 60)
    assert float(desktop.evaluate(shown)) == pytest.approx(steps[0]["loss"], rel=5e-3)
    grad_norm = desktop.evaluate("document.querySelector('#chart-grad_norm .legend b').textContent")
    assert float(grad_norm) == pytest.approx(steps[0]["grad_norm"], rel=5e-3), "all charts follow the cursor"
    desktop.move_mouse(left + width - 13, top + 60)
    assert float(desktop.evaluate(shown)) == pytest.approx(steps[-1]["loss"], rel=5e-3)
    desktop.move_mouse(1, 1)
    desktop.evaluate("document.querySelector('#chart-loss .plot').focus({preventScroll: true})")
    for key, place in (("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", -1)):
        desktop.press(key)
        assert float(desktop.evaluate(shown)) == pytest.approx(steps[place]["loss"], rel=5e-3)
        assert f"step {steps[place]['step']}: " in desktop.evaluate("document.querySelector('#live').textContent")
    desktop.evaluate("""(() => {
        const axis = document.querySelector("#axis");
        axis.value = "iteration";
        axis.dispatchEvent(new Event("change"));
    })()""")
    desktop.press("Home")
    for _ in range(3):
        desktop.press("ArrowRight")  # the fourth step is the first of the second iteration
    assert "iteration 1: " in desktop.evaluate("document.querySelector('#live').textContent")
    assert desktop.console == []


@in_browser
def test_responses_of_every_iteration_token_by_token(hostile: Path, both: Path, desktop: Page) -> None:
    desktop.open(both)
    desktop.evaluate("""(() => {
        const select = document.querySelector("#response-browser select");
        select.value = 1;
        select.dispatchEvent(new Event("change"));
        document.querySelector("#iteration-slider").focus();
    })()""")
    assert desktop.evaluate("document.querySelector('.iteration output').textContent") == "2"
    desktop.press("ArrowLeft")
    assert desktop.evaluate("document.querySelector('.iteration output').textContent") == "1"
    group, place = map(
        int,
        desktop.evaluate("""
        document.querySelector(".sample .facts li:last-child").textContent.match(/[0-9]+/g)""")[::-1],
    )
    response = read_groups(hostile, 1)[group - 1]["responses"][place - 1]
    ids = desktop.evaluate("[...document.querySelector('.tokens').children].map((token) => token.textContent)")
    assert ids == [str(token_id) for token_id in response["token_ids"]], "there is no tokenizer beside this run"
    desktop.evaluate("document.querySelector('.tokens').focus()")
    desktop.press("ArrowRight")
    readout = desktop.evaluate("document.querySelector('.token-readout').textContent")
    assert readout.startswith(f"token 1 of {len(ids)} · id {ids[0]} · old − rollout +0.125 · rollout log-prob −")
    colours = desktop.evaluate("[...document.querySelectorAll('.token')].map((t) => t.style.backgroundColor)")
    assert len(set(colours)) == 1 and "var(--more)" in colours[0], "the trainer finds every token more likely"
    desktop.evaluate("""(() => {
        const select = document.querySelector("#colouring");
        select.value = "log_probs";
        select.dispatchEvent(new Event("change"));
    })()""")
    colours = desktop.evaluate("[...document.querySelectorAll('.token')].map((t) => t.style.backgroundColor)")
    assert len(set(colours)) > 3 and all("var(--unlikely)" in colour for colour in colours)
    assert desktop.console == []


@in_browser
def test_a_run_can_be_hidden(both: Path, desktop: Page) -> None:
    desktop.open(both)
    count = "document.querySelectorAll('#chart-loss .plot path').length"
    assert desktop.evaluate(count) == 2
    desktop.evaluate("document.querySelector('#runs input').click()")
    assert desktop.evaluate(count) == 1
    desktop.evaluate("document.querySelectorAll('#runs input')[1].click()")
    assert desktop.evaluate(count) == 0 and desktop.console == []


@in_browser
def test_seeds_share_a_band(run: Path, desktop: Page) -> None:
    """Three runs, of which the loss is 1, 2 and 4 times the first's: the band goes from the lowest to the highest."""
    copies = [run]
    for factor in (2, 4):
        folder = run.parent / f"seed-{factor}"
        shutil.copytree(run, folder, ignore=shutil.ignore_patterns("hf", "checkpoints", "rollouts"))
        config = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(re.sub(r"(?m)^  seed: \d+", f"  seed: {factor}", config))
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        scaled = [line | {"loss": factor * line["loss"]} if "loss" in line else line for line in lines]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, scaled)))
        copies.append(folder)
    page = run.parent / "seeds.html"
    report(page, *copies)
    desktop.open(page)
    assert desktop.console == []
    drawn = desktop.evaluate("""[...document.querySelectorAll("#chart-loss .plot path")].map((path) =>
        [path.getAttribute("class"), path.getAttribute("d").slice(1).split(/[LZ]/).filter((x) => x)
            .map((point) => point.split(" ").map(Number))])""")
    bands, lines = ([points for style, points in drawn if ("band" in style) == is_band] for is_band in (True, False))
    (band,), count = bands, len(tiny_task.steps(run))
    ones, twos, fours, mean = (dict(points) for points in lines)
    assert dict(band[:count]) == ones and dict(band[count:]) == fours, "lower edge, and back along the upper one"
    for x, y in mean.items():
        assert y == pytest.approx((ones[x] + twos[x] + fours[x]) / 3, abs=0.1)
