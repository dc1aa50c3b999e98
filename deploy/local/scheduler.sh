#!/bin/bash
# The scheduler of a cluster of processes, on one host: copy this file, change the lines 1, 2 and 3, run it.
set -eu
shared=$HOME/nmf-dask                     # 1. a folder that all hosts see
source "$HOME/nmf-dask/venv/bin/activate" # 2. what puts dask on the path
port=8786                                 # 3. a port that the other hosts reach

export DASK_CONFIG=$shared/tls/dask.yaml # made by: certificates.sh $shared/tls
# Dask takes a file that is missing for none, and would let in whoever comes.
[ -r "$DASK_CONFIG" ] || { echo "$DASK_CONFIG is not there: certificates.sh $shared/tls" >&2; exit 2; }
exec dask scheduler --port "$port" --scheduler-file "$shared/scheduler.json"
