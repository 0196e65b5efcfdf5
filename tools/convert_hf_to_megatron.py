"""See sppo_megatron.cli.convert_hf_to_megatron."""

import sys

from sppo_megatron.cli.convert_hf_to_megatron import main

if __name__ == "__main__":
    sys.exit(main())
