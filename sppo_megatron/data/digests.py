"""What decides the content of a file, in a few characters: sha256 of prompts, files and models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from sppo_megatron.data.json_values import to_plain
from sppo_megatron.types import Prompt

_PIECES, _PIECE_BYTES = 64, 1 << 16


def file_digest(path: str | Path) -> str:
    """Of the file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def prompts_digest(prompts: Iterable[Prompt]) -> str:
    """Of everything that a prompt brings into a rollout file, in order."""
    digest = hashlib.sha256()
    for prompt in prompts:
        human = None if prompt.human_token_ids is None else prompt.human_token_ids.tolist()
        record = [prompt.index, prompt.token_ids.tolist(), prompt.text, prompt.answer, human]
        columns = [prompt.messages, to_plain(prompt.extra), prompt.source]
        digest.update(json.dumps([*record, *columns]).encode() + b"\n")
    return digest.hexdigest()


def model_digest(folder: Path) -> str:
    """Of a folder in Hugging Face format: its files' names, and `sampled_digest` of each."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            digest.update(path.name.encode() + b" ")
            _sample(path, digest)
    return digest.hexdigest()


def sampled_digest(path: Path) -> str:
    """Of a file's size, and of 64 pieces of 64 KiB spread over it.

    Hundreds of gigabytes of weights aren't read for it, and other weights of the same shapes differ in every piece.
    """
    digest = hashlib.sha256()
    _sample(path, digest)
    return digest.hexdigest()


def _sample(path: Path, digest: hashlib._Hash) -> None:
    size = path.stat().st_size
    digest.update(f"{size}\n".encode())
    with open(path, "rb") as file:
        for piece in range(_PIECES):
            file.seek(max(0, size - _PIECE_BYTES) * piece // (_PIECES - 1))
            digest.update(file.read(_PIECE_BYTES))
            if size <= _PIECE_BYTES:
                break
