"""A small real corpus and the whole job on it: shows that an installation or a cluster image works.

python jobs/demo.py --output /tmp/demo
"""

import sys

from nmf_dask.cli import leave
from nmf_dask.cli import main as nmf_dask


def main(arguments: list[str] | None = None) -> int:
    return nmf_dask(["demo", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":  # Dask's worker processes import this file
    leave(main())
