"""`sppo verify`."""

import sys

from sppo_megatron.cli.verify import main

if __name__ == "__main__":
    sys.exit(main())
