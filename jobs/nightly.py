"""One night of a lake that grows, as a script for a scheduler to start every night.

python jobs/nightly.py jobs/nightly.toml --input lake/ --output model/ --weights weights/
sbatch --wrap 'srun python jobs/nightly.py nightly.toml --scheduler scheduler.json'
"""

import sys

from nmf_dask.cli import leave
from nmf_dask.cli import main as nmf_dask


def main(arguments: list[str] | None = None) -> int:
    alone = arguments is None  # a script: its deadline is that of the process
    return nmf_dask(["nightly", *(sys.argv[1:] if arguments is None else arguments)], alone)


if __name__ == "__main__":  # Dask's worker processes import this file
    leave(main())
