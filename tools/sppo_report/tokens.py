"""The text of each token, by the tokenizer that lies beside the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sppo_megatron.errors import ConfigError
from sppo_report.run_folder import Run

TOKENIZER_FILE = "tokenizer.json"


def find_tokenizer(run: Run, given: Path | None = None) -> Path | None:
    """A tokenizer.json: of the folder that is given, of the exported policy, or of the model the run started from.

    Raises ConfigError if the given folder has none.
    """
    if given is not None:
        if not (given / TOKENIZER_FILE).is_file():
            raise ConfigError(f"{given} has no {TOKENIZER_FILE}: give the folder of a fast tokenizer")
        return given / TOKENIZER_FILE
    folders = [run.folder / "hf", Path(str(run.config.get("model.hf_path") or run.folder))]
    return next((folder / TOKENIZER_FILE for folder in folders if (folder / TOKENIZER_FILE).is_file()), None)


class TokenTexts:
    """Cuts a response into the texts of its tokens. Raises ConfigError if the file can't be read."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises no narrower type
            raise ConfigError(f"{path} can't be read by the package tokenizers: {error}") from None

    def __call__(self, token_ids: Sequence[object]) -> list[str]:
        """One text for each token, special tokens included; joined they are the response's text.

        A token that ends inside a character is empty, and the one that completes the character has it whole. What is
        no token of the tokenizer is written as `[id]`, and bytes that are no text by their token's name.
        """
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=False)
        texts: list[str] = []
        for token_id in token_ids:
            name = self._name(token_id)
            if name is None:
                texts.append(f"[{token_id}]")
                continue
            try:
                texts.append(stream.step(self._tokenizer, token_id) or "")
            except Exception:  # of no narrower type; the stream can't go on after bytes that turned out to be no text
                stream = DecodeStream(skip_special_tokens=False)
                texts.append(name)
        return texts

    def _name(self, token_id: object) -> str | None:
        if not isinstance(token_id, int) or not 0 <= token_id < 2**31:
            return None
        return self._tokenizer.id_to_token(token_id)
