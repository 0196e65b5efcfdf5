"""Whether vLLM's model took every tensor that it was sent: by the names that its `load_weights` returns."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

_EXPERT = re.compile(r"\.experts\.\d+\.")
_SHOWN = 3


def find_untaken(
    sent: Iterable[str],
    loaded: Collection[str],
    packed: Mapping[str, Sequence[str]],
    rename: Callable[[str], str | None] = lambda name: name,
    *,
    ties_head: bool = False,
) -> str | None:
    """What is wrong; None if every name that was sent was taken.

    sent: Hugging Face names. loaded: vLLM's own names of what it filled. packed: its fused modules and their parts
    (qkv_proj: [q_proj, k_proj, v_proj]). rename: how the model renames a checkpoint's names, None for those it leaves
    out on purpose. Exceptions: the head, if it is tied to the embedding; experts are one tensor for each layer there.
    """
    filled = set(loaded)
    experts = {name.partition(".experts.")[0] for name in filled if ".experts." in name}

    def taken(name: str) -> bool:
        if ties_head and name.endswith("lm_head.weight"):
            return True
        renamed = rename(name)
        return renamed is None or any(
            candidate in filled or (_EXPERT.search(candidate) and _EXPERT.split(candidate)[0] in experts)
            for candidate in _candidates(renamed, packed)
        )

    untaken = [name for name in sent if not taken(name)]
    if not untaken:
        return None
    more = f" and {len(untaken) - _SHOWN} more" if len(untaken) > _SHOWN else ""
    return f"its model did not take {', '.join(untaken[:_SHOWN])}{more}"


def _candidates(name: str, packed: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """The name itself, and that of the fused module it may be a part of."""
    yield name
    for fused, parts in packed.items():
        for part in parts:
            if f".{part}." in name:
                yield name.replace(f".{part}.", f".{fused}.")
