"""Makes what the demo starts from: a task, a tokenizer, and a small model after a short supervised warm-up.

The task is to reverse three to six digits ("4821=" -> "1284"). The warm-up stops at about half of the held-out prompts
solved, so that there is something left for SPPO to learn. Everything is cached in the output folder: a second call with
the same settings does nothing.

    python examples/demo/prepare.py --output outputs/demo
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

PAD, END, ANSWER = "<pad>", "<end>", "="
VOCABULARY = [PAD, END, ANSWER, *"0123456789"]
VOCAB_SIZE = 16
HELD_OUT = 256  # problems

Problem = tuple[str, str]  # prompt, answer


def make_tokenizer(vocabulary: Sequence[str] = VOCABULARY) -> PreTrainedTokenizerFast:
    """One token a character."""
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)


def make_model(seed: int) -> Qwen2ForCausalLM:
    """A Qwen2 of 0.4M parameters."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=VOCABULARY.index(END),
        pad_token_id=VOCABULARY.index(PAD),
    )
    return Qwen2ForCausalLM(config)


def make_numbers(count: int, seed: int) -> list[str]:
    """Distinct strings of three to six digits."""
    generator = random.Random(seed)
    numbers: dict[str, None] = {}
    while len(numbers) < count:
        length = generator.randint(3, 6)
        numbers["".join(generator.choices("0123456789", k=length))] = None
    return list(numbers)


def reversals(numbers: list[str]) -> list[Problem]:
    return [(number + ANSWER, number[::-1]) for number in numbers]


def write_problems(path: Path, problems: list[Problem]) -> None:
    """One prompt a line, as `data.train_path` is read."""
    lines = (json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in problems)
    path.write_text("\n".join(lines) + "\n")


def encode_batch(problems: list[Problem], tokenizer: PreTrainedTokenizerFast) -> tuple[Tensor, Tensor]:
    """(input ids, labels) [batch, length]; labels are −100 but for the answer and its end token."""
    rows, labels = [], []
    for prompt, answer in problems:
        prompt_ids = tokenizer.encode(prompt)
        answer_ids = [*tokenizer.encode(answer), tokenizer.eos_token_id]
        rows.append(torch.tensor(prompt_ids + answer_ids))
        labels.append(torch.tensor([-100] * len(prompt_ids) + answer_ids))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(rows, batch_first=True), pad(labels, batch_first=True, padding_value=-100)


@torch.no_grad()
def exact_match(model: Qwen2ForCausalLM, problems: list[Problem], tokenizer: PreTrainedTokenizerFast) -> float:
    """Share that greedy decoding solves. Teacher forcing tells: all answer tokens must be the argmax."""
    ids, labels = encode_batch(problems, tokenizer)
    predicted = model(ids).logits[:, :-1].argmax(-1)
    wanted = labels[:, 1:]
    return float(((predicted == wanted) | (wanted == -100)).all(dim=1).float().mean())


def warm_up(
    model: Qwen2ForCausalLM,
    problems: list[Problem],
    held_out: list[Problem],
    tokenizer: PreTrainedTokenizerFast,
    target: float,
) -> float:
    """Supervised steps until `target` of the held-out problems is solved; returns the share that is."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    generator = random.Random(0)
    solved = 0.0
    for step in range(1, 501):
        ids, labels = encode_batch(generator.sample(problems, 64), tokenizer)
        logits = model(ids).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 5 == 0:
            solved = exact_match(model, held_out, tokenizer)
            if solved >= target:
                break
    return solved


def fingerprint(problems: list[Problem], vocabulary: Sequence[str]) -> str:
    """Of everything but the settings that decides what is made: the task, this file, the libraries."""
    made_from = [problems, list(vocabulary), Path(__file__).read_text(), torch.__version__, transformers.__version__]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()


def prepare(
    description: str | None, output: str, make_problems: Callable[[int], list[Problem]], vocabulary: list[str]
) -> None:
    """The command: problems by the seed, the first 256 of them held out, and a model warmed up on the others."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(output))
    parser.add_argument("--target", type=float, default=0.5, help="held-out exact match to stop the warm-up at")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    problems = make_problems(options.seed)
    settings = {"target": options.target, "seed": options.seed, "made_from": fingerprint(problems, vocabulary)}
    stamp = options.output / "prepared.json"
    if stamp.exists() and json.loads(stamp.read_text())["settings"] == settings:
        print(f"starting model: {options.output / 'start'} (cached)")
        return
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)  # from here on the folder is of neither settings
    held_out, problems = problems[:HELD_OUT], problems[HELD_OUT:]
    write_problems(options.output / "train.jsonl", problems)
    write_problems(options.output / "eval.jsonl", held_out)
    tokenizer, model = make_tokenizer(vocabulary), make_model(options.seed)
    solved = warm_up(model, problems, held_out, tokenizer, options.target)
    tokenizer.save_pretrained(options.output / "start")
    model.save_pretrained(options.output / "start")
    stamp.write_text(json.dumps({"settings": settings, "held_out_exact_match": solved}))
    print(f"starting model: {options.output / 'start'}, {solved:.0%} of the held-out problems solved")


if __name__ == "__main__":
    prepare(__doc__, "outputs/demo", lambda seed: reversals(make_numbers(4096 + HELD_OUT, seed)), VOCABULARY)
