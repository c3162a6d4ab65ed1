"""`python store_writer.py ROOT SEED [FAILPOINT TIMES]` uses a disk store without end, until it is killed.

With a failpoint, it kills itself there, the TIMES-th time; `opcode` stands for each opcode that Python executes. It
says "started" before it opens the store.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from loramux.adapters import failpoints
from loramux.adapters.disk_store import DiskStore
from loramux.errors import StoreFull
from loramux.lora.remote import CONFIG_NAME, WEIGHTS_NAME
from store_cases import BASE, ref_to

MAX_BYTES = 400_000
MAX_WEIGHTS_NBYTES = 60_000
NUM_CONTENTS = 40
NUM_THREADS = 2


def main(root: str, seed: int, failpoint: str | None = None, times: int = 1) -> None:
    sys.stdout.write("started\n")
    sys.stdout.flush()
    if failpoint == "opcode":
        die_at_opcode(times)
    with failpoints.installed(killer(failpoint, times)):
        use(root, seed)


def killer(failpoint: str | None, times: int) -> Callable[[str], None]:
    passed = itertools.count(1)

    def handle(name: str) -> None:
        if name == failpoint and next(passed) >= times:
            os.kill(os.getpid(), signal.SIGKILL)

    return handle


def die_at_opcode(number: int) -> None:
    executed = itertools.count(1)

    def trace(frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        frame.f_trace_opcodes = True
        if next(executed) >= number:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    threading.settrace(trace)
    sys.settrace(trace)


def use(root: str, seed: int) -> None:
    store = DiskStore.open(root, max_bytes=MAX_BYTES, min_free_bytes=0)
    threads = [threading.Thread(target=work, args=(store, random.Random(f"{seed} {n}"))) for n in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    raise SystemExit("a worker has ended")


def work(store: DiskStore, chooser: random.Random) -> None:
    while True:
        number = chooser.randrange(NUM_CONTENTS)
        try:
            digest = write_adapter(store, number, is_given_up=chooser.random() < 0.1)
        except StoreFull:
            digest = None
        ref = store.find_ref(BASE, f"adapter-{chooser.randrange(NUM_CONTENTS)}")
        lease = None if ref is None else store.hold(ref.digest)
        if digest is not None and chooser.random() < 0.1:
            store.discard(digest)
        if chooser.random() < 0.1:
            store.remove_ref(BASE, f"adapter-{number}")
        if lease is not None:
            lease.release()


def write_adapter(store: DiskStore, number: int, *, is_given_up: bool) -> str | None:
    content = random.Random(number)
    config = content.randbytes(content.randrange(1000))
    weights = content.randbytes(content.randrange(MAX_WEIGHTS_NBYTES))
    with store.stage(len(config) + len(weights)) as staging:
        (staging.folder / CONFIG_NAME).write_bytes(config)
        write_slowly(staging.folder / WEIGHTS_NAME, weights)
        if is_given_up:
            return None
        digest = staging.publish().digest
        store.set_ref(BASE, f"adapter-{number}", ref_to(digest))
        return digest


def write_slowly(path: Path, content: bytes) -> None:
    """In pieces, as a download comes."""
    with path.open("xb", buffering=0) as stream:
        for begin in range(0, len(content), 4096):
            stream.write(content[begin : begin + 4096])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:4], *map(int, sys.argv[4:5]))
