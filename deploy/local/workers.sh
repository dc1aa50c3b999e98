#!/bin/bash
# Workers of a cluster of processes, on each host: copy this file, change the lines 1, 2 and 3, run it with their number:
# workers.sh 8
set -eu
shared=$HOME/nmf-dask                     # 1. a folder that all hosts see
source "$HOME/nmf-dask/venv/bin/activate" # 2. what puts dask on the path
memory=4GiB                               # 3. of one worker

export DASK_CONFIG=$shared/tls/dask.yaml # made by: certificates.sh $shared/tls
exec dask worker --scheduler-file "$shared/scheduler.json" --nworkers "$1" --nthreads 1 --memory-limit "$memory" \
    --local-directory "${TMPDIR:-/tmp}"
