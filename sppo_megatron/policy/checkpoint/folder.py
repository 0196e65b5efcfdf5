"""Checkpoint folders on disk: which are whole, which is the latest, which go.

A checkpoint is the folder `step_NNNNNNNN`. It is written as `step_NNNNNNNN.partial` and renamed when every byte of it
is on the disk, so that a folder without a suffix was whole once; its manifest tells whether it still is. The link
`best` leads to the one that evaluated best.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from sppo_megatron.data.atomic_file import replace, sync

MANIFEST = "manifest.json"
BEST = "best"
_NAME = re.compile(r"step_(\d{8})")


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


def partial_path(final: Path) -> Path:
    return final.with_name(final.name + ".partial")


def whole_checkpoints(folder: Path) -> list[Path]:
    """The published checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob("step_*") if _NAME.fullmatch(path.name))


def latest_checkpoint(folder: Path) -> Path | None:
    """The published checkpoint of the highest step in a folder."""
    return next(reversed(whole_checkpoints(folder)), None)


def remove_partial(folder: Path) -> None:
    """Removes what interrupted saves left behind."""
    for path in folder.glob("step_*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def publish(partial: Path, final: Path, keep_last: int, best: int = 0) -> None:
    """Makes a written checkpoint exist: manifest, fsync, rename. Only then do older ones go, but for keep_last.

    best: the step of one more that stays, linked as `best`; 0 where there is none.
    Checkpoints of later steps belong to a future that was given up by continuing from an earlier one: they are set
    aside with the suffix `.stale`.
    """
    files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
    sizes = {str(path.relative_to(partial)): path.stat().st_size for path in files}
    (partial / MANIFEST).write_text(json.dumps(sizes, indent=2))
    for path in (*files, partial / MANIFEST):
        sync(path)
    for path in whole_checkpoints(final.parent):
        if path.name >= final.name:
            stale = path.with_name(path.name + ".stale")
            shutil.rmtree(stale, ignore_errors=True)
            os.replace(path, stale)
    replace(partial, final)
    kept = checkpoint_path(final.parent, best)
    if best and kept.exists():
        _link(final.parent / BEST, kept)
    for old in whole_checkpoints(final.parent)[:-keep_last]:
        if old != kept:
            shutil.rmtree(old, ignore_errors=True)


def _link(link: Path, target: Path) -> None:
    """A relative link, which survives a move of the folder; replaced in one step."""
    new = link.with_name(link.name + ".new")
    new.unlink(missing_ok=True)
    new.symlink_to(target.name)
    os.replace(new, link)


def check_whole(path: Path) -> None:
    """Raises ValueError naming the first file of a checkpoint that is missing, unreadable or of another size."""
    try:
        sizes: dict[str, int] = json.loads((path / MANIFEST).read_text())
        for name, expected in sizes.items():
            with open(path / name, "rb") as file:
                found = os.fstat(file.fileno()).st_size
            if found != expected:
                raise ValueError(f"{name} has {found} of {expected} bytes")
    except (OSError, ValueError) as error:
        others = [str(other) for other in whole_checkpoints(path.parent) if other != path]
        older = f"checkpoint.load={others[-1]}" if others else "there is no other one"
        raise ValueError(f"the checkpoint {path} is damaged: {error}. Continue from an older one: {older}") from error
