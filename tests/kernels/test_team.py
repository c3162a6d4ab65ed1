"""Teams: which threads of the process compute."""

from __future__ import annotations

import subprocess
import sys

# Prints how many threads computing adds to the process, in the first of two threads that both live on, and in the
# second; in a process of its own, for a thread that ends takes its team along in its own time.
SCRIPT = """
import os, sys, threading
import torch
from loramux_kernels.team import stay_alone

def compute(prepare, done):
    prepare()
    before = len(os.listdir("/proc/self/task"))
    result = torch.ones(1 << 20) + 1
    assert (result == 2).all()
    print(len(os.listdir("/proc/self/task")) - before)
    done.set()
    over.wait()

torch.set_num_threads(3)
over = threading.Event()
threads = []
for prepare in (stay_alone, lambda: None):
    threads.append(threading.Thread(target=compute, args=(prepare, done := threading.Event())))
    threads[-1].start()
    done.wait()
over.set()
"""


def test_a_thread_that_stays_alone_computes_without_a_team_and_others_keep_theirs() -> None:
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["0", "2"]
