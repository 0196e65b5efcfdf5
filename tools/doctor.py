"""See sppo_megatron.commands.doctor."""

import sys

from sppo_megatron.commands.doctor import main

if __name__ == "__main__":
    sys.exit(main())
