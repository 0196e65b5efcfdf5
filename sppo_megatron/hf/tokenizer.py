"""The tokenizer of a folder in Hugging Face format, by its own file.

transformers 5 takes some tokenizers apart and builds them again as the class that tokenizer_config.json or the model's
type names; a class that isn't the file's own gives other tokens without a word. `tokenizer.json` says all by itself.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.remote_code import remote_code_refused

logger = logging.getLogger(__name__)

TOKENIZER_FILE = "tokenizer.json"
_FILES = (TOKENIZER_FILE, "tokenizer_config.json", "vocab.json", "vocab.txt", "tekken.json", "*.model")
# What tokenizers differ in: blanks, line ends, digits, code, accents in both forms, scripts, emoji, byte letters.
PROBE = (
    "Hello world",
    "  two leading blanks,  two between, one behind ",
    "line\n\n\ttab\r\nend\n",
    "1 12 123 1234 12345678 3.14 1,000 1e-5 ½ ²",
    'def f(x):\n    return {"a": [x, -1]}  # don\'t, "quote"\n',
    "\\frac{1}{2} + \\sqrt{x^2} \\le \\infty $5 50%",
    "naïve cafe\u0301 Ärger Straße Ñandú ﬁ Ａ１",
    "你好，世界。日本語のテキスト 한국어",
    "مرحبا بالعالم שלום नमस्ते สวัสดี Привет Γειά",
    "👍🏽 👨‍👩‍👧 🇩🇪 ♥️ \u200b\u00a0\u3000",
    "Ġ Ċ ▁ â ĠHello ▁Hello <0x0A>",
    "I'm you're WE'LL a_b-c/d@e.f http://x.y",
)


def load_tokenizer(folder: Path) -> Any | None:
    """The folder's tokenizer, None if it has none: as transformers opens it, if that gives the tokens of
    tokenizer.json, else the one in that file, which is said in one warning.

    Raises ConfigError for files that can't be read. Code of the folder is never run.
    """
    if not any(any(folder.glob(name)) for name in _FILES):
        return None
    has_file = (folder / TOKENIZER_FILE).exists()
    try:
        with remote_code_refused(f"the tokenizer of {folder}"):
            by_class = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # a class that isn't known, doesn't fit, or is code of the folder
        is_code = isinstance(error, ConfigError)
        if not has_file:
            raise error if is_code else _unreadable(folder, error) from error
        own = _own(folder)
        _say_own(folder, "its class is code that comes with it" if is_code else _first_line(error))
        return own
    if not has_file or type(by_class) is PreTrainedTokenizerFast:
        return by_class
    difference = find_difference(by_class, folder)
    if difference is None:
        return by_class
    own = _own(folder, model_input_names=by_class.model_input_names)
    _say_own(folder, f"{type(by_class).__name__}, as which transformers opens it, {difference}")
    return own


def decoder(tokenizer: Any) -> Callable[[Sequence[np.ndarray]], list[str]]:
    """Token ids int32 [n] of each -> their texts without special tokens, and with every blank that they stand for."""
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    return lambda sequences: tokenizer.batch_decode([ids.tolist() for ids in sequences], **options)


def find_difference(tokenizer: Any, folder: Path) -> str | None:
    """What a tokenizer makes otherwise than the folder's tokenizer.json by itself, on `PROBE` and on every added token;
    None if nothing."""
    own = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    own.no_truncation()
    own.no_padding()
    added = [token.content for token in own.get_added_tokens_decoder().values()]
    for text in (*PROBE, "a".join(["", *added, ""])):
        expected = own.encode(text, add_special_tokens=False).ids
        try:
            found = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        except Exception as error:  # the package raises plain Exception
            return f"fails on {text[:40]!r} ({_first_line(error)})"
        if found != expected:
            return f"makes {_shown(found, expected)} of {text[:40]!r}, where the file makes {_shown(expected, found)}"
        decoded = tokenizer.decode(found, clean_up_tokenization_spaces=False, skip_special_tokens=True)
        if decoded != own.decode(expected, skip_special_tokens=True):
            return f"decodes the tokens of {text[:40]!r} to {decoded[:40]!r}"
    settings = _settings(folder)
    if not {"add_bos_token", "add_eos_token"} & settings.keys():
        found, expected = list(tokenizer("a")["input_ids"]), own.encode("a").ids
        if found != expected:
            return f"puts special tokens around a text: {found}, where the file makes {expected}"
    named = json.dumps(settings, ensure_ascii=False)
    unknown = [token for token in tokenizer.all_special_tokens if own.token_to_id(token) is None and token not in named]
    return f"adds {', '.join(map(repr, unknown))}, which none of the files has" if unknown else None


def _own(folder: Path, **settings: Any) -> Any:
    try:
        return PreTrainedTokenizerFast.from_pretrained(str(folder), **settings)
    except Exception as error:  # the package raises plain Exception
        raise _unreadable(folder, error) from error


def _say_own(folder: Path, why: str) -> None:
    logger.warning(
        "the tokenizer of %s is read from its %s alone: %s; whoever opens the trained model by AutoTokenizer of "
        "transformers 5 gets other tokens, by PreTrainedTokenizerFast the same",
        folder,
        TOKENIZER_FILE,
        why,
    )


def _settings(folder: Path) -> dict[str, Any]:
    """What the files beside tokenizer.json say of special tokens."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "added_tokens.json", "tokenizer_config.json"):
        if (folder / name).exists():
            found |= json.loads((folder / name).read_text(encoding="utf-8"))
    return found


def _shown(tokens: list[int], others: list[int]) -> str:
    """Some tokens, from the first that differs on."""
    start = next((i for i, (a, b) in enumerate(zip(tokens, others, strict=False)) if a != b), 0)
    return f"{len(tokens)} tokens ({'... ' if start else ''}{' '.join(map(str, tokens[start : start + 4]))} ...)"


def _unreadable(folder: Path, error: Exception) -> ConfigError:
    return ConfigError(f"the tokenizer of {folder} can't be read: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
