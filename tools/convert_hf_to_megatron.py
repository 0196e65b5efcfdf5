"""`sppo convert --to megatron`."""

import sys

from sppo_megatron.cli.convert import main

if __name__ == "__main__":
    sys.exit(main(["--to", "megatron", *sys.argv[1:]]))
