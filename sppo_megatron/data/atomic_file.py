"""Files and folders that are there whole or not at all: a reader never sees half of one, also after a crash.

What is written lies beside its place under a temporary name, goes to the disk, and is renamed. A link is followed: what
it leads to is replaced, on its own file system.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sppo_megatron.errors import ConfigError

_MARKER = ".unfinished_by_sppo_megatron"  # in a folder that may be deleted: nobody but this module put it there


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A new file to write bytes to, which takes its place if the block ends well; else what was there stays."""
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """The file with this content; text is written in UTF-8."""
    with atomic_file(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def link_file(source: Path, path: Path) -> None:
    """A second name of the same file, in place of what had it; a copy if the file system has no such links.

    Only for files that are replaced and never written into: what one name leads to then never changes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
            sync(temporary)
        replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # still there if both were one file already


@contextlib.contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """A new folder to write into, FOLDER.partial, which takes FOLDER's place if the block ends well.

    FOLDER itself is deleted then, after it was set aside as FOLDER.old. What a killed call left behind under these two
    names is deleted or, if FOLDER was set aside and nothing came in its place, put back. Raises ConfigError if
    something else has one of the names.
    """
    folder = Path(os.path.realpath(folder))
    partial, old = (folder.with_name(folder.name + suffix) for suffix in (".partial", ".old"))
    if (old / _MARKER).exists() and not folder.exists():
        os.replace(old, folder)
        (folder / _MARKER).unlink()
    for path in (partial, old):
        _remove_own(path, folder)
    partial.mkdir(parents=True)
    (partial / _MARKER).touch()
    try:
        yield partial
        for path in partial.rglob("*"):
            sync(path)
    except BaseException:
        _remove(partial)
        raise
    if folder.exists():
        (folder / _MARKER).touch()
        os.replace(folder, old)
    replace(partial, folder)
    (folder / _MARKER).unlink()
    if old.exists():
        _remove(old)


def replace(temporary: Path, final: Path) -> None:
    """Gives a file or folder its name; the name is on the disk when this returns."""
    os.replace(temporary, final)
    sync(final.parent)


def sync(path: Path) -> None:
    """What the file holds, or which names the folder has, is on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_own(path: Path, folder: Path) -> None:
    is_folder = path.is_dir() and not path.is_symlink()
    if is_folder and ((path / _MARKER).exists() or not any(path.iterdir())):
        _remove(path)
    elif path.exists() or path.is_symlink():
        raise ConfigError(
            f"{path} is in the way of writing {folder}, and nothing marks it as left by a stopped run: move it away"
        )


def _remove(folder: Path) -> None:
    """The marker goes last, so that a call that is killed here is continued by the next one."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _MARKER:
            path.unlink()
    (folder / _MARKER).unlink(missing_ok=True)
    folder.rmdir()
