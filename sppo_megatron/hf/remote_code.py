"""Code that comes with a model, a tokenizer or their config is never run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sppo_megatron.errors import ConfigError


@contextlib.contextmanager
def remote_code_refused(what: str) -> Iterator[None]:
    """Around transformers' `from_pretrained(..., trust_remote_code=False)`, which else asks at the terminal.

    what: the setting and its value, for the message. Raises ConfigError if nothing but such code could read it.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ConfigError(
            f"{what} comes with Python code of its own (auto_map in its config), which is never run "
            "(trust_remote_code is off): give one that transformers itself can read"
        ) from error
