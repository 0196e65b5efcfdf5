"""See sppo_megatron.commands.generate."""

from __future__ import annotations

import sys

from sppo_megatron.commands.generate import main

if __name__ == "__main__":
    sys.exit(main())
