"""How good the topics of a model are, as a script to submit.

python jobs/evaluate.py model/ --input corpus/ --label-column label --output evaluation.parquet
sbatch --wrap 'srun python jobs/evaluate.py model/ job.toml --scheduler scheduler.json'
"""

import sys

from nmf_dask.cli import leave
from nmf_dask.cli import main as nmf_dask


def main(arguments: list[str] | None = None) -> int:
    return nmf_dask(["evaluate", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":  # Dask's worker processes import this file
    leave(main())
