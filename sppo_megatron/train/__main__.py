"""`torchrun ... -m sppo_megatron.train [overrides]`."""

from __future__ import annotations

import sys

from sppo_megatron.train.command import main

if __name__ == "__main__":
    sys.exit(main())
