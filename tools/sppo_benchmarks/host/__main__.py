"""See `sppo_benchmarks.host.command`."""

import sys

from sppo_benchmarks.host.command import main

if __name__ == "__main__":
    sys.exit(main())
