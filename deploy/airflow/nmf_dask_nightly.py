"""A DAG for Airflow 3: a fit every night, and its topics in the log.

Copy it into the folder of DAGs and change the three lines marked <--. It needs no package but Airflow's own: the tasks
call the command line, which may be installed anywhere on the worker. What becomes of a task goes by the exit code:

  0       done. To run a finished job again does nothing, so a task that is cleared costs seconds.
  75      again, after a while, from the last checkpoint. So is what Airflow itself ends (SIGTERM).
  2, 65   the configuration or the input is wrong: not again (Airflow calls that skipped), and `wrong` fails the run.
"""

from datetime import datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

COMMAND = "/opt/nmf-dask/bin/nmf-dask"  # <--
JOB = "/opt/jobs/job.toml"  # <-- with the input, and the scheduler or the number of workers
MODEL = "s3://bucket/model"  # <--

with DAG(
    dag_id="nmf_dask_nightly",
    schedule="30 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={
        "skip_on_exit_code": [2, 65],
        "retries": 5,
        "retry_delay": timedelta(minutes=2),
        "execution_timeout": timedelta(hours=12),
        "append_env": True,  # of the worker, where the keys of the object store are
    },
):
    fit = BashOperator(
        task_id="fit", bash_command=f"exec {COMMAND} fit {JOB} --output {MODEL} --log-format json"
    )
    topics = BashOperator(task_id="topics", bash_command=f"exec {COMMAND} topics {MODEL}")
    wrong = BashOperator(
        task_id="wrong",
        bash_command="echo 'configuration or input is wrong: see the log of the task that was skipped'; exit 1",
        trigger_rule="all_skipped",
        retries=0,
    )
    fit >> topics >> wrong
