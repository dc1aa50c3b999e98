"""New documents to their weights under a fitted model, as a script to submit.

python jobs/transform.py --model model/ --input new/ --output weights/ --new-only
sbatch --wrap 'srun python jobs/transform.py job.toml --output weights/ --scheduler scheduler.json'
"""

import sys

from nmf_dask.cli import leave
from nmf_dask.cli import main as nmf_dask


def main(arguments: list[str] | None = None) -> int:
    alone = arguments is None  # a script: its deadline is that of the process
    return nmf_dask(["transform", *(sys.argv[1:] if arguments is None else arguments)], alone)


if __name__ == "__main__":  # Dask's worker processes import this file
    leave(main())
