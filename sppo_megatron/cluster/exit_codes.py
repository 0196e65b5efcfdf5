"""How a command that many ranks run ends: one message of one rank, and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable

from sppo_megatron.errors import ConfigError, LostRankError, TrainingError

EXIT_FAILED = 1
EXIT_CONFIG_ERROR = 2
_SECONDS_TO_SPEAK = 30


def run_to_end(what: str, run: Callable[[], int]) -> int:
    """The exit code: run's, or that of an error that the user can mend, which is one message on standard error.

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
            raise
        return _report(f"{what} stopped: the disk is full: {error}", 0, EXIT_FAILED)


def _report(message: str, rank: int, exit_code: int) -> int:
    """From rank 0. The others wait for it: torchrun ends every process as soon as one has failed."""
    if rank == 0:
        print(message, file=sys.stderr, flush=True)
    else:
        time.sleep(_SECONDS_TO_SPEAK)
    return exit_code
