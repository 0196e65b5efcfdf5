"""See sppo_megatron.commands.report."""

import sys

from sppo_megatron.commands.report import main

if __name__ == "__main__":
    sys.exit(main())
