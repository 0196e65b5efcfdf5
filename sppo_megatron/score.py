"""See sppo_megatron.commands.score."""

from __future__ import annotations

import sys

from sppo_megatron.commands.score import main

if __name__ == "__main__":
    sys.exit(main())
