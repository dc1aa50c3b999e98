"""Run by a Python with Airflow: parses a folder of DAGs, runs the one in it, and tells as JSON what came of it."""

import json
import sys
from datetime import timedelta

from airflow.dag_processing.dagbag import DagBag


def main(folder: str, told: str) -> None:
    bag = DagBag(folder)
    assert not bag.import_errors, bag.import_errors
    [dag] = bag.dags.values()
    found = {
        task.task_id: {
            "command": task.bash_command,
            "retries": task.retries,
            "delay": task.retry_delay.total_seconds(),
            "skipped": task.skip_on_exit_code,
        }
        for task in dag.tasks
    }
    for task in dag.tasks:
        task.retry_delay = timedelta(0)
    run = dag.test()
    states = {one.task_id: [str(one.state), one.try_number] for one in run.get_task_instances()}
    with open(told, "w", encoding="utf-8") as file:
        json.dump({"tasks": found, "state": str(run.state), "states": states}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
