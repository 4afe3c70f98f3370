"""Runs that want the same directory at the same time.

    python two_runs.py DIRECTORY

starts two new runs with different seeds in DIRECTORY/run, kills the one that trains
once the other has ended, does the same with two that go on, and prints of each of the
four as JSON: the process's number, its seed, its exit code, what it wrote to stderr.
"""

import json
import os
import pathlib
import signal
import sys
import time

import killed_runs


def two(directory, seeds, resume):
    """How two runs end that start together; the one that trains is killed."""
    first_step = killed_runs.last_step(directory)
    started = {}
    for number, seed in enumerate(seeds):
        log = directory.with_name(f"{resume}-{number}.txt")
        kept = os.dup(2)
        with log.open("w") as file:
            os.dup2(file.fileno(), 2)  # which the run inherits
            pid = killed_runs.start(directory, "dp_oadam", seed=seed, resume=resume)
        os.dup2(kept, 2)
        started[pid] = {"pid": pid, "seed": seed, "log": log}
    refused, status = os.wait()
    (holder,) = started.keys() - {refused}
    while killed_runs.last_step(directory) < first_step + 3 * killed_runs.EVERY:
        time.sleep(0.005)
    os.kill(holder, signal.SIGKILL)
    statuses = {refused: status, holder: os.waitpid(holder, 0)[1]}
    return [
        run
        | {"log": run["log"].read_text()}
        | {"code": os.waitstatus_to_exitcode(statuses[pid])}
        for pid, run in started.items()
    ]


def main(root):
    """Two new runs, and two that go on with what the first left."""
    killed_runs.STEPS = 10**6  # none ends by itself
    directory = pathlib.Path(root, "run")
    new = two(directory, (0, 1), resume=False)
    (seed,) = {run["seed"] for run in new if run["code"] == -signal.SIGKILL}
    print(json.dumps([new, two(directory, (seed, seed), resume=True)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
