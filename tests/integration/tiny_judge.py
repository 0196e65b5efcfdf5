"""A tiny judge: a model whose answer is A or B, and the real vLLM server that serves it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sppo_megatron.cluster.http_client import HttpClient
from sppo_megatron.rewards.text import JUDGE_TEMPLATE

CHAT_TEMPLATE = "{% for message in messages %}<user>{{ message['content'] }}<end>{% endfor %}<judge>"
SPECIAL = ["<pad>", "<end>", "<user>", "<judge>"]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character."""
    vocabulary = [*SPECIAL, "\n", *map(chr, range(32, 127))]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", additional_special_tokens=SPECIAL[2:]
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def conversation(tokenizer, prompt: str, first: str, second: str) -> torch.Tensor:
    text = JUDGE_TEMPLATE.replace("{prompt}", prompt).replace("{first}", first).replace("{second}", second)
    text = f"<user>{text}<end><judge>"
    return torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])


def make_model(tokenizer) -> LlamaForCausalLM:
    """Random weights, but for the head's rows of A and B: both point to where the answers are, and differ across it."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.2,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        where = [conversation(tokenizer, "p", *texts) for texts in (("x", "y"), ("1", "23"), ("some words", "4"))]
        hidden = torch.stack([model.model(ids).last_hidden_state[0, -1] for ids in where]).mean(dim=0)
        along, across = hidden / hidden.square().sum(), torch.randn(len(hidden)) * 0.2
        across -= along * (across @ hidden)
        model.lm_head.weight *= 0.1
        for letter, sign in (("A", 1), ("B", -1)):
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(letter)] = 12 * along + sign * across
    return model


def save_judge(folder: Path) -> Path:
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    make_model(tokenizer).save_pretrained(folder)
    return folder


class JudgeServer:
    """Starts at once; `wait` until it answers."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        options = ["--dtype", "float32", "--max-model-len", "1024", "--enforce-eager", "--generation-config", "vllm"]
        options += ["--served-model-name", "judge", "--disable-uvicorn-access-log"]
        if not torch.cuda.is_available():
            options += ["--kv-cache-memory-bytes", str(32 << 20)]
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
        self.process = subprocess.Popen(
            [*server, "--port", str(port), *options],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def wait(self) -> str:
        """Its address, as soon as it is healthy."""
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline and self.process.poll() is None:
            if HttpClient(self.url).is_healthy():
                return self.url
            time.sleep(0.5)
        raise AssertionError("the judge's server did not start")

    def kill(self) -> None:
        """SIGKILL to the server and its engine."""
        for process in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
            process.kill()
        self.process.wait(timeout=60)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)
