"""See sppo_megatron.cli.convert_megatron_to_hf."""

import sys

from sppo_megatron.cli.convert_megatron_to_hf import main

if __name__ == "__main__":
    sys.exit(main())
