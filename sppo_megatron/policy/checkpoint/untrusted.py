"""Reading a checkpoint runs nothing of what it holds, whoever wrote it.

Megatron-Core's torch_dist format pickles the table of its tensors (`.metadata`), the optimizer's settings, and what
older versions call common.pt. A pickle calls whatever function it names, so here only the classes of such a table are
known, and all else is read as torch reads weights.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException

from sppo_megatron.errors import ConfigError

TABLE = ".metadata"
_DCP = "torch.distributed.checkpoint"
# Data classes and enums: to build one runs nothing.
_KNOWN = {
    "collections": {"OrderedDict"},
    # the folder, if it was given as a path; Python 3.13 names it by the second
    "pathlib": {"PosixPath"},
    "pathlib._local": {"PosixPath"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    f"{_DCP}.filesystem": {"_StorageInfo"},
    f"{_DCP}.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    f"{_DCP}.planner": {"SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"},
}
_FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # read by torch.load, also where its caller asks for more


class _Table(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = name in _KNOWN.get(module, ())
        if not known and not (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


@contextlib.contextmanager
def nothing_executed(folder: Path) -> Iterator[None]:
    """Around what reads a torch_dist checkpoint. Raises ConfigError, without running it, if it names a function.

    Not for threads: within, torch.load reads weights alone in all of the process.
    """
    before = os.environ.get(_FORCED)
    os.environ[_FORCED] = "1"
    try:
        if (folder / TABLE).exists():
            with open(folder / TABLE, "rb") as file:
                _Table(file).load()
        yield
    except (Exception, CheckpointException) as error:  # torch's own is no Exception
        refused = next((cause for cause in causes(error) if isinstance(cause, pickle.UnpicklingError)), None)
        if refused is None:
            raise
        raise ConfigError(
            f"{folder} is no checkpoint that this program wrote, or it is damaged: what isn't a tensor in it would be "
            f"run to be read, so it isn't read ({str(refused).strip().splitlines()[0]})"
        ) from error
    finally:
        if before is None:
            del os.environ[_FORCED]
        else:
            os.environ[_FORCED] = before


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it came from, and what torch.distributed.checkpoint collected from ranks."""
    pending: list[BaseException | None] = [error]
    while pending:
        if (part := pending.pop()) is not None:
            yield part
            pending += [part.__cause__, part.__context__]
            pending += [of_rank[0] for of_rank in getattr(part, "failures", {}).values()]
