"""Measure how the disk store grows: `python contrib/benchmarks/store.py`.

One line per number of tiny adapters, each measured in a process of its own over files that the page cache has: seconds
to open the store, how much memory that takes (resident afterwards, and at the peak), microseconds to hold an adapter,
and milliseconds to publish one more when each needs an eviction: the first, which walks over the store, and the mean.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from loramux.adapters.digest import digest_of_folder
from loramux.adapters.disk_store import DiskStore
from loramux.adapters.store_layout import StoreLayout
from loramux.adapters.store_manifest import MANIFEST_NAME, Manifest
from loramux.lora.remote import CONFIG_NAME, WEIGHTS_NAME

NUM_HELD = 500
NUM_STAGED = 256
STAGED_NBYTES = 100


def fill(root: Path, num_adapters: int) -> None:
    """Put tiny adapters into a store, without the syncs that make it safe and slow."""
    layout = StoreLayout(root)
    DiskStore.open(root).close()
    for number in range(num_adapters):
        draft = layout.new_tmp()
        draft.mkdir()
        (draft / CONFIG_NAME).write_bytes(b"{}")
        (draft / WEIGHTS_NAME).write_bytes(number.to_bytes(STAGED_NBYTES, "little"))
        hashed = digest_of_folder(draft)
        (draft / MANIFEST_NAME).write_bytes(Manifest(hashed.digest, hashed.files, time.time()).to_json())
        folder = layout.folder(hashed.digest)
        folder.parent.mkdir(exist_ok=True)
        draft.rename(folder)


def measure(root: Path) -> dict[str, float]:
    """Open the store, use it, and return the figures."""
    before = _resident_kib("VmRSS")
    began = time.perf_counter()
    store = DiskStore.open(root)
    figures = {"open_seconds": time.perf_counter() - began}
    figures["resident_kib"] = _resident_kib("VmRSS") - before
    figures["peak_kib"] = _resident_kib("VmHWM") - before  # getrusage would count the parent's peak too
    nbytes = store.nbytes
    store.close()

    digests = [folder.name for folder, _ in zip(StoreLayout(root).folders(), range(NUM_HELD), strict=False)]
    with DiskStore.open(root, max_bytes=nbytes, min_free_bytes=0) as full:
        began = time.perf_counter()
        for digest in digests:
            lease = full.hold(digest)
            assert lease is not None
            lease.release()
        figures["hold_microseconds"] = (time.perf_counter() - began) / len(digests) * 1e6
        seconds = [_publish(full) for _ in range(min(NUM_STAGED, len(digests) // 2))]
    figures["first_publish_milliseconds"] = seconds[0] * 1e3
    figures["mean_publish_milliseconds"] = sum(seconds) / len(seconds) * 1e3
    return figures


def _resident_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _publish(store: DiskStore) -> float:
    """Return the seconds that it takes to make room for one more and to have it published."""
    began = time.perf_counter()
    with store.stage(STAGED_NBYTES + 2) as staging:
        (staging.folder / CONFIG_NAME).write_bytes(b"{}")
        (staging.folder / WEIGHTS_NAME).write_bytes(time.time_ns().to_bytes(STAGED_NBYTES, "little"))
        staging.publish()
    return time.perf_counter() - began


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        sys.stdout.write(json.dumps(measure(arguments.measure)))
        return
    sys.stdout.write("adapters   open s   resident KiB   peak KiB   hold us   first publish ms   mean publish ms\n")
    for num_adapters in arguments.adapters:
        with tempfile.TemporaryDirectory() as folder:
            fill(Path(folder), num_adapters)
            command = [sys.executable, __file__, "--measure", folder]
            figures = json.loads(subprocess.check_output(command))  # noqa: S603 - this file
        sys.stdout.write(
            "{0:8,}   {open_seconds:6.3f}   {resident_kib:12,.0f}   {peak_kib:8,.0f}   {hold_microseconds:7.0f}   "
            "{first_publish_milliseconds:16.1f}   {mean_publish_milliseconds:15.1f}\n".format(num_adapters, **figures)
        )


if __name__ == "__main__":
    main()
