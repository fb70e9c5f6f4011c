"""What a process takes: CPU seconds, wall seconds, anonymous memory."""

import os
import subprocess
import sys
import threading
import time


def anonymous(pid):
    try:
        for line in open(f"/proc/{pid}/status"):
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def measure(commands, cores=1):
    """User and system seconds of the processes, wall seconds, and the highest anonymous memory seen in one of them, sampled every 2 ms; several run at
    once. `cores`: how many they are held to; None: all."""
    allowed = sorted(os.sched_getaffinity(0))[-cores if cores else None :]
    before, start, peak = os.times(), time.perf_counter(), 0
    hold = lambda: os.sched_setaffinity(0, allowed)
    running = [subprocess.Popen(c, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=hold) for c in commands]

    def watch():
        nonlocal peak
        while any(p.poll() is None for p in running):
            peak = max([peak] + [anonymous(p.pid) for p in running])
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for p in running:
        complaint = p.stderr.read().decode()
        if p.wait() != 0:
            sys.exit(f"{p.args} failed: {complaint}")
    wall = time.perf_counter() - start
    watcher.join()
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return cpu, wall, peak
