"""``python -m nmf_dask``: the command line, where the console script is not on the path."""

import sys

from nmf_dask.cli import main

if __name__ == "__main__":
    sys.exit(main())
