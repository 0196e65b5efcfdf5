"""The task of this example: a policy that writes digits, and a judge who likes sevens.

    python examples/offline_paper/sevens.py prepare --output outputs/offline_paper
    python examples/offline_paper/sevens.py count ROLLOUTS ...

`prepare` makes the policy (random weights), the judge (trained for some seconds: P(A wins) = σ(sevens in A − sevens in
B)), and the prompts; a second call does nothing. `count` prints how many sevens a response of each file holds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
from pathlib import Path

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<end>", "<first>", "<second>", "<judge>"]  # left out of a response's text
PLAIN = "0123456789=AB"
VOCABULARY = [*SPECIAL, *PLAIN]
VOCAB_SIZE = 32  # more than there are tokens: a judge is asked for the 20 most probable ones
JUDGE_CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}<judge>"
QUESTION = "{prompt}<first>{first}<second>{second}"  # the judge's template
LONGEST = 8  # tokens of a response


def make_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """One token a character."""
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(VOCABULARY)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", additional_special_tokens=SPECIAL[2:]
    )
    fast.chat_template = chat_template
    return fast


def make_model(seed: int) -> LlamaForCausalLM:
    """A Llama of 0.3M parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=SPECIAL.index("<end>"),
        pad_token_id=SPECIAL.index("<pad>"),
    )
    return LlamaForCausalLM(config)


def sevens_of(text: str) -> int:
    return text.count("7")


def make_prompt(generator: random.Random) -> str:
    return f"{generator.randint(100, 999)}="


def make_questions(count: int, tokenizer: PreTrainedTokenizerFast, generator: random.Random) -> tuple[Tensor, Tensor]:
    """(token ids [count, length] padded on the left, P(A wins) [count]) of pairs of random responses."""
    rows, wins = [], []
    for _ in range(count):
        first, second = ("".join(generator.choices(PLAIN + "7777", k=generator.randint(0, LONGEST))) for _ in "AB")
        question = QUESTION.format(prompt=make_prompt(generator), first=first, second=second)
        ids = tokenizer.apply_chat_template([{"role": "user", "content": question}], return_dict=False)
        rows.append(torch.tensor(ids))
        wins.append(1 / (1 + math.exp(sevens_of(second) - sevens_of(first))))
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left", padding_value=0)
    return ids, torch.tensor(wins)


def log_probs_of_letters(model: LlamaForCausalLM, ids: Tensor, tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """log P(A) and log P(B) as the answer's first token, [B, 2] nats. ids: [B, length], padded on the left."""
    places = tokenizer.convert_tokens_to_ids(["A", "B"])
    positions = (ids != 0).long().cumsum(dim=1) - 1
    logits = model(ids, attention_mask=(ids != 0).long(), position_ids=positions.clamp(min=0)).logits[:, -1]
    return logits.log_softmax(dim=-1)[:, places]


def train_judge(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int) -> float:
    """Cross entropy with P(A wins); returns the mean error of P(A wins) on new questions."""
    generator = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        ids, wins = make_questions(64, tokenizer, generator)
        log_a, log_b = log_probs_of_letters(model, ids, tokenizer).unbind(dim=1)
        loss = -(wins * log_a + (1 - wins) * log_b).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ids, wins = make_questions(512, tokenizer, generator)
    with torch.no_grad():
        found = log_probs_of_letters(model, ids, tokenizer).softmax(dim=1)[:, 0]
    return float((found - wins).abs().mean())


def prepare(output: Path, steps: int = 200) -> None:
    """output/policy, judge, question.txt, held_out.jsonl and prompts.jsonl; last, what they were made from."""
    stamp = output / "prepared.sha256"
    made_from = [Path(__file__).read_text(), steps, torch.__version__, transformers.__version__]
    settings = hashlib.sha256(json.dumps(made_from).encode()).hexdigest() + "\n"
    if stamp.exists() and stamp.read_text() == settings:
        print(f"{output} is prepared")
        return
    stamp.unlink(missing_ok=True)
    torch.set_num_threads(1)
    output.mkdir(parents=True, exist_ok=True)
    make_tokenizer().save_pretrained(output / "policy")
    make_model(seed=0).save_pretrained(output / "policy")
    tokenizer, judge = make_tokenizer(JUDGE_CHAT), make_model(seed=1)
    error = train_judge(judge, tokenizer, steps)
    tokenizer.save_pretrained(output / "judge")
    judge.save_pretrained(output / "judge")
    (output / "question.txt").write_text(QUESTION)
    generator = random.Random(1)
    lines = [json.dumps({"prompt": make_prompt(generator)}) + "\n" for _ in range(96)]
    (output / "held_out.jsonl").write_text("".join(lines[64:]))
    (output / "prompts.jsonl").write_text("".join(lines[:64]))
    stamp.write_text(settings)
    print(f"{output}: the judge's P(A wins) is off by {error:.3f} on average")


def count(files: list[Path]) -> None:
    for file in files:
        groups = [json.loads(line) for line in file.read_text().splitlines()]
        texts = [response["text"] for group in groups for response in group["responses"]]
        print(f"{file}: {sum(map(sevens_of, texts)) / len(texts):.2f} sevens a response")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("prepare").add_argument("--output", type=Path, default=Path("outputs/offline_paper"))
    commands.add_parser("count").add_argument("files", type=Path, nargs="+")
    options = parser.parse_args()
    if options.command == "prepare":
        prepare(options.output)
    else:
        count(options.files)


if __name__ == "__main__":
    main()
