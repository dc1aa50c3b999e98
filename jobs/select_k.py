"""Choosing the number of topics, as a script to submit.

python jobs/select_k.py job.toml --input corpus/ --output model/ --n-components 5:50:5 --commit
sbatch --wrap 'srun python jobs/select_k.py job.toml -k 5,10,20,40 --scheduler scheduler.json'
"""

import sys

from nmf_dask.cli import leave
from nmf_dask.cli import main as nmf_dask


def main(arguments: list[str] | None = None) -> int:
    return nmf_dask(["select", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":  # Dask's worker processes import this file
    leave(main())
