"""Checkpoint folders on disk: which are whole, which is the latest, which go.

A checkpoint is the folder `step_NNNNNNNN`. It is written as `step_NNNNNNNN.partial` and renamed when every byte of it
is on the disk, so that a folder without a suffix was whole once; its manifest tells whether it still is. The link
`best` leads to the one that evaluated best. Only folders with these very names and a mark of ours inside are removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import time
from pathlib import Path

from sppo_megatron.data.atomic_file import replace, sync
from sppo_megatron.errors import ConfigError

MANIFEST = "manifest.json"
MODEL = "model.json"  # what the weights are the weights of: written first, so that it marks a folder as ours
BEST = "best"
_NAME = re.compile(r"step_\d{8}")
_LEFTOVER = re.compile(r"step_\d{8}\.(partial|stale)")


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


def remove_leftovers(folder: Path) -> None:
    """Removes what interrupted saves left behind."""
    for path in folder.glob("step_*.*"):
        if _LEFTOVER.fullmatch(path.name):
            remove(path)


def remove(path: Path) -> None:
    """Removes a checkpoint or what there is of one; a folder that this program didn't write stays."""
    if (path / MODEL).exists() or (path / MANIFEST).exists():
        shutil.rmtree(path, ignore_errors=True)


def publish(partial: Path, final: Path, keep_last: int, best: int = 0) -> None:
    """Makes a written checkpoint exist: manifest, fsync, rename. Only then do older ones go, but for keep_last.

    best: the step of one more that stays, linked as `best`; 0 if there is none. If it isn't in this folder, what the
    link leads to stays; a link never leads nowhere.
    Checkpoints of later steps belong to a future that was given up by continuing from an earlier one: they are set
    aside with the suffix `.stale`, and go when the new one is there.
    """
    files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
    sizes = {str(path.relative_to(partial)): path.stat().st_size for path in files}
    (partial / MANIFEST).write_text(json.dumps(sizes, indent=2))
    for path in (*files, partial / MANIFEST):
        sync(path)
    for path in whole_checkpoints(final.parent):
        if path.name >= final.name:
            stale = path.with_name(path.name + ".stale")
            remove(stale)
            os.replace(path, stale)
    replace(partial, final)
    kept = _link_best(final.parent, best)
    for old in whole_checkpoints(final.parent)[:-keep_last]:
        if old.name != kept:
            remove(old)
    remove_leftovers(final.parent)


def _link_best(folder: Path, step: int) -> str | None:
    """Links the best checkpoint, or drops a link that leads nowhere; the name of the one that is linked then.

    The link is relative, so it survives a move of the folder, and is replaced in one step.
    """
    link, target = folder / BEST, checkpoint_path(folder, step)
    if step and target.exists():
        new = link.with_name(link.name + ".new")
        new.unlink(missing_ok=True)
        new.symlink_to(target.name)
        os.replace(new, link)
    elif link.is_symlink() and not link.exists():
        link.unlink()
    return link.resolve().name if link.is_symlink() else None


def check_whole(path: Path) -> None:
    """Raises ConfigError naming the first file of a checkpoint that is missing, unreadable or of another size."""
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
        raise ConfigError(f"the checkpoint {path} is damaged: {error}. Continue from an older one: {older}") from error


def wait_until_visible(path: Path, timeout_s: float = 60.0) -> None:
    """For a rank whose view of a shared folder is older than rank 0's, which chose the checkpoint.

    Raises ConfigError if the checkpoint doesn't appear.
    """
    deadline = time.monotonic() + timeout_s
    while not (path / MANIFEST).exists():
        if time.monotonic() > deadline:
            raise ConfigError(
                f"the checkpoint {path}, which rank 0 continues from, can't be seen on {socket.gethostname()}: "
                "every node needs the same storage"
            )
        time.sleep(0.5)
        with contextlib.suppress(OSError):
            os.listdir(path.parent)  # which has a network file system look again
