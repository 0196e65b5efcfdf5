"""See sppo_megatron.commands.serve_rollouts."""

import sys

from sppo_megatron.commands.serve_rollouts import main

if __name__ == "__main__":
    sys.exit(main())
