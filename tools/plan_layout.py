"""See sppo_megatron.commands.plan_layout."""

import sys

from sppo_megatron.commands.plan_layout import main

if __name__ == "__main__":
    sys.exit(main())
