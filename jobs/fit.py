"""Corpus to topics, as a script to submit.

python jobs/fit.py jobs/newsgroups.toml --input corpus/ --output model/
sbatch --wrap 'srun python jobs/fit.py job.toml --scheduler scheduler.json'
"""

import sys

from nmf_dask.cli import leave
from nmf_dask.cli import main as nmf_dask


def main(arguments: list[str] | None = None) -> int:
    alone = arguments is None  # a script: its deadline is that of the process
    return nmf_dask(["fit", *(sys.argv[1:] if arguments is None else arguments)], alone)


if __name__ == "__main__":  # Dask's worker processes import this file
    leave(main())
