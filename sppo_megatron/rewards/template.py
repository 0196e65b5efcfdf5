"""The text that shows a judge or a pairwise model a prompt with two responses."""

from __future__ import annotations

import re
from pathlib import Path

from sppo_megatron.errors import ConfigError

PLACEHOLDERS = ("{prompt}", "{first}", "{second}")

JUDGE_TEMPLATE = """\
Below are a request and two responses to it, A and B. Decide which of the two serves the request better. Neither their \
order nor their length says anything about their quality.

[Request]
{prompt}

[Response A]
{first}

[Response B]
{second}

Answer with one letter and nothing else: A if response A is better, B if response B is better."""

PAIRWISE_TEMPLATE = """\
[Request]
{prompt}

[Response A]
{first}

[Response B]
{second}"""


def load_template(path: str | None, default: str) -> str:
    """The file's text, the default where path is None. Raises ConfigError without a file or a placeholder."""
    if path is None:
        return default
    try:
        template = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the reward's template {path} can't be read: {error}") from error
    missing = [name for name in PLACEHOLDERS if name not in template]
    if missing:
        raise ConfigError(
            f"the reward's template {path} lacks {', '.join(missing)}: it needs {', '.join(PLACEHOLDERS)}"
        )
    return template


def render(template: str, prompt: str, first: str, second: str) -> str:
    """Fills in the placeholders; braces elsewhere, also in the three texts, stay as they are."""
    texts = dict(zip(PLACEHOLDERS, (prompt, first, second), strict=True))
    return re.sub("|".join(map(re.escape, PLACEHOLDERS)), lambda match: texts[match[0]], template)
