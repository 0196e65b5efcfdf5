"""`sppo convert --to hf`."""

import sys

from sppo_megatron.cli.convert import main

if __name__ == "__main__":
    sys.exit(main(["--to", "hf", *sys.argv[1:]]))
