"""A frozen Hugging Face sequence classifier with one output, in batches on this rank's device."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from sppo_megatron.config import RewardModelConfig
from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.hf_folder import resolve_hf_folder
from sppo_megatron.hf.remote_code import remote_code_refused
from sppo_megatron.hf.tokenizer import load_tokenizer
from sppo_megatron.rewards.text import printable

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Text = str | tuple[str, str]  # a pair is two segments


class SequenceClassifier:
    """tokenizer: the model's own.

    Raises ConfigError if there is no such model, or it has no head with one output.
    """

    def __init__(self, config: RewardModelConfig) -> None:
        self._config = config
        has_cuda = torch.cuda.is_available()
        self._device = torch.device("cuda", torch.cuda.current_device()) if has_cuda else torch.device("cpu")
        self.tokenizer, self._model = _load(config)
        self._model.to(self._device).eval().requires_grad_(False)
        self._own_pad_token_id = self._model.config.get_text_config().pad_token_id

    @torch.inference_mode()
    def logits(self, texts: Sequence[Text], *, special_tokens: bool) -> list[float | None]:
        """The model's output for each text, None if it is empty or longer than max_length. Texts are batched by length.

        special_tokens: whether the tokenizer adds them; a chat template has written them already.
        """
        limit = self._config.max_length or math.inf
        encoded = [self._encode(text, special_tokens) for text in texts]
        places = [place for place, one in enumerate(encoded) if 0 < len(one["input_ids"]) <= limit]
        places.sort(key=lambda place: len(encoded[place]["input_ids"]))
        found: list[float | None] = [None] * len(texts)
        for start in range(0, len(places), self._config.batch_size):
            batch = places[start : start + self._config.batch_size]
            for place, logit in zip(batch, self._run([encoded[place] for place in batch]), strict=True):
                found[place] = logit
        return found

    def _encode(self, text: Text, special_tokens: bool) -> dict[str, list[int]]:
        segments = map(printable, (text,) if isinstance(text, str) else text)  # a tokenizer takes no lone surrogate
        return dict(self.tokenizer(*segments, add_special_tokens=special_tokens))

    def _run(self, batch: list[dict[str, list[int]]]) -> list[float]:
        pad = self._pad_token_id([one["input_ids"] for one in batch])
        length = max(len(one["input_ids"]) for one in batch)
        inputs = {
            key: _padded([one[key] for one in batch], length, pad if key == "input_ids" else 0).to(self._device)
            for key in batch[0]
        }
        return self._model(**inputs).logits.float().squeeze(-1).tolist()

    def _pad_token_id(self, rows: list[list[int]]) -> int:
        """Decoders score the last token that isn't padding, so what pads must not be the last token of a row.

        A model with a padding token of its own was trained with its meaning, which is kept.
        """
        if self._own_pad_token_id is not None:
            return self._own_pad_token_id
        last = {row[-1] for row in rows}
        free = next(token for token in range(len(last) + 1) if token not in last)
        self._model.config.get_text_config().pad_token_id = free
        return free


def _padded(rows: list[list[int]], length: int, value: int) -> Tensor:
    """int64 [B, length], padded on the right."""
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


def _load(config: RewardModelConfig) -> tuple[Any, Any]:
    assert config.path is not None, "checked"
    settings: dict[str, Any] = {"num_labels": 1, "dtype": _DTYPES[config.dtype], "output_loading_info": True}
    with remote_code_refused(f"reward.model.path={config.path}"):
        try:
            tokenizer = load_tokenizer(resolve_hf_folder(config.path, "reward.model.path", with_weights=False))
            model, info = AutoModelForSequenceClassification.from_pretrained(
                config.path, trust_remote_code=False, **settings
            )
        except pickle.UnpicklingError as error:
            raise ConfigError(
                f"reward.model.path={config.path} holds a pickle that is more than tensors, which is never run: "
                "give its weights as safetensors"
            ) from error
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"reward.model.path={config.path} can't be loaded as a sequence classifier with one output: {error}"
            ) from error
    if tokenizer is None:
        raise ConfigError(f"reward.model.path={config.path} has no tokenizer: save one into that folder")
    absent = sorted([*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])])
    if absent:
        raise ConfigError(
            f"reward.model.path={config.path} has no trained {', '.join(absent[:3])}: "
            "it is no sequence classifier with one output, and would score at random"
        )
    return tokenizer, model
