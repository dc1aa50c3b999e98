"""One page to look at a model, as a script to submit after the fit.

python jobs/report.py model/ --input corpus/ --output report.html
"""

import sys

from nmf_dask.cli import leave
from nmf_dask.cli import main as nmf_dask


def main(arguments: list[str] | None = None) -> int:
    return nmf_dask(["report", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    leave(main())
