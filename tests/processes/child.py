"""A process without JAX for the tests of the launcher: `child.py EVENT`."""

import os
import signal
import sys
import time

event = sys.argv[1]
number = int(os.environ["JAXSP_PROCESS_ID"])
if event == "talk":
    print("[Gloo] Rank 1 is connected to 3 peer ranks. Expected number of ... is : 3")
    print("one\ntwo")
    print("wrong", file=sys.stderr)
    sys.stdout.write("no end")
elif event == "environment":
    names = "JAXSP_COORDINATOR JAXSP_NUM_PROCESSES JAX_NUM_CPU_DEVICES XLA_FLAGS"
    names += " JAXSP_LAUNCH_COMMAND"
    print(*(os.environ[name] for name in names.split()), sys.argv[2:], sep="|")
elif event == "fail":  # the others would sleep
    if number == 1:
        sys.exit(7)
    if number == 0:  # and this one does not even hear SIGTERM
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("pid", os.getpid(), flush=True)
    time.sleep(30)
    print("was not ended")
elif event == "killed":
    if number == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)
    sys.exit(75)
elif event == "sleep":
    print("pid", os.getpid(), flush=True)
    time.sleep(60)
elif event == "interrupt":

    def stop(*_):
        print("interrupted", flush=True)
        sys.exit(0 if number == 0 else 5)

    signal.signal(signal.SIGINT, stop)
    print("pid", os.getpid(), flush=True)
    time.sleep(60)
