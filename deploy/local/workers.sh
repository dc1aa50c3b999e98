#!/bin/bash
# Workers of a cluster of processes, on each host: copy this file, change the lines 1, 2 and 3, run it with their number:
# workers.sh 8
set -eu
shared=$HOME/nmf-dask                     # 1. a folder that all hosts see
source "$HOME/nmf-dask/venv/bin/activate" # 2. what puts dask on the path
memory=4GiB                               # 3. of one worker

export DASK_CONFIG=$shared/tls/dask.yaml # made by: certificates.sh $shared/tls
# Dask takes a file that is missing for none, and would let in whoever comes.
[ -r "$DASK_CONFIG" ] || { echo "$DASK_CONFIG is not there: certificates.sh $shared/tls" >&2; exit 2; }
exec dask worker --scheduler-file "$shared/scheduler.json" --nworkers "${1:?how many workers}" --nthreads 1 --memory-limit "$memory" \
    --local-directory "${TMPDIR:-/tmp}"
