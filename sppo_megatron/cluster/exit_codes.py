"""How a command that many ranks run ends: one message of one rank, and an exit code.

torchrun prints a report when a rank has failed. What is in the error file that it names to each rank ends that report.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import time
import traceback
from collections.abc import Callable

from sppo_megatron.errors import ConfigError, LostRankError, TrainingError

EXIT_FAILED = 1
EXIT_CONFIG_ERROR = 2
_SECONDS_TO_SPEAK = 30


def exit_code_of(what: str, run: Callable[[], int]) -> int:
    """run's exit code, or that of an error that the user can fix, which is one message on standard error.

    what: the noun that stops, such as "training". Raises what is an error of the program.
    """
    rank = int(os.environ.get("RANK", "0"))
    try:
        return run()
    except ConfigError as error:
        return _report(f"configuration error: {error}", rank, EXIT_CONFIG_ERROR)
    except TrainingError as error:
        return _report(f"{what} stopped: {error}", rank, EXIT_FAILED)
    except LostRankError as error:
        return _report(f"{what} stopped: {error}", 0 if error.speaks else 1, EXIT_FAILED)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            _tell_torchrun(traceback.format_exc())
            raise
        return _report(f"{what} stopped: the disk is full: {error}", 0, EXIT_FAILED)
    except Exception:
        _tell_torchrun(traceback.format_exc())
        raise


def _report(message: str, rank: int, exit_code: int) -> int:
    """From rank 0. The others wait for it: torchrun ends every process as soon as one has failed."""
    if rank == 0:
        _tell_torchrun(message)
        print(message, file=sys.stderr, flush=True)
    else:
        time.sleep(_SECONDS_TO_SPEAK)
    return exit_code


def _tell_torchrun(message: str) -> None:
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        report = {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
            json.dump({"message": report}, file)
