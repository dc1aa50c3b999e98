"""A model takes in new documents, as a script to submit.

python jobs/update.py --model model/ --input corpus/ --history discount=0.9
sbatch --wrap 'srun python jobs/update.py job.toml --scheduler scheduler.json'
"""

import sys

from nmf_dask.cli import leave
from nmf_dask.cli import main as nmf_dask


def main(arguments: list[str] | None = None) -> int:
    alone = arguments is None  # a script: its deadline is that of the process
    return nmf_dask(["update", *(sys.argv[1:] if arguments is None else arguments)], alone)


if __name__ == "__main__":  # Dask's worker processes import this file
    leave(main())
