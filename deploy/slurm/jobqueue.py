"""The fit with workers that are SLURM jobs of their own, started and replaced by dask-jobqueue; needs `dask-jobqueue`.

python jobqueue.py job.toml       on a login node, or in a small job: scheduler and driver run in this process
"""

import subprocess
import sys

from dask_jobqueue import SLURMCluster

from nmf_dask.cli import leave, main

WORKERS = 8  # 1. how many
WORKER = {"cores": 1, "processes": 1, "memory": "4GiB", "walltime": "04:00:00"}  # 2. what each may use
MORE: dict[str, object] = {"queue": None, "account": None}  # 3. partition, account, interface, …

# 2 where SLURM takes no such job, 75 where nobody answers. Dask would wait for workers that never come.
CHECK = "sbatch --test-only || { scontrol ping; [ $? -eq 1 ] && exit 75; exit 2; }"


def fit(arguments: list[str]) -> int:
    """Run the job on workers of its own; its exit code."""
    # Any free port for the dashboard: drivers that share a login node would want the same one.
    options = {"scheduler_options": {"dashboard_address": ":0"}, **WORKER, **MORE}
    with SLURMCluster(**options) as cluster:
        job = cluster.job_script()
        checked = subprocess.run(CHECK, shell=True, input=job, text=True, capture_output=True)
        if checked.returncode:
            sys.stderr.write(f"jobqueue.py: {checked.stderr}")
            return checked.returncode
        cluster.adapt(minimum_jobs=WORKERS, maximum_jobs=WORKERS)  # a job that ends is replaced
        address = ["--scheduler", cluster.scheduler_address, "--workers", str(WORKERS)]
        return main(["fit", *arguments, *address])


if __name__ == "__main__":
    leave(fit(sys.argv[1:]))
