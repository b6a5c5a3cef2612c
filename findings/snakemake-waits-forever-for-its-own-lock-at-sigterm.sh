#!/usr/bin/env bash
# Snakemake never ends if SIGTERM arrives while its scheduler holds a lock, or twice in a row.
#
# snakemake 9.27.1: JobScheduler.exit_gracefully, its handler of SIGTERM, takes self._lock, a threading.Lock. Python runs
# handlers in the main thread, which may hold that lock already: the scheduler does while it chooses jobs, and the
# handler itself does when a second SIGTERM interrupts it. The thread then waits for itself. `timeout 60 make` sends
# SIGTERM to the group, and make passes its own on, so two in a row are usual.
#
# Output seen:
#     SIGTERM while the lock is held: still waiting after 5 s
#
# Exits with a status other than 0 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet snakemake==9.27.1
cd "$folder"
cat >meet.py <<'PYTHON'
import os
import signal
import threading

from snakemake.scheduling.job_scheduler import JobScheduler

scheduler = object.__new__(JobScheduler)
scheduler._lock, scheduler._open_jobs = threading.Lock(), threading.Semaphore(0)
signal.signal(signal.SIGTERM, scheduler.exit_gracefully)
print("ready", flush=True)
with scheduler._lock:
    os.kill(os.getpid(), signal.SIGTERM)
PYTHON
status=0
timeout --signal KILL 60 "$folder/venv/bin/python" -c "
import subprocess, sys
process = subprocess.Popen([sys.executable, 'meet.py'], stdout=subprocess.PIPE, text=True)
process.stdout.readline()
try:
    process.wait(5)
except subprocess.TimeoutExpired:
    process.kill()
    print('SIGTERM while the lock is held: still waiting after 5 s')
else:
    sys.exit('this has changed')
" || status=$?
exit $status
