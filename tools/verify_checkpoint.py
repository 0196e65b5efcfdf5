"""See sppo_megatron.commands.verify_checkpoint."""

import sys

from sppo_megatron.commands.verify_checkpoint import main

if __name__ == "__main__":
    sys.exit(main())
