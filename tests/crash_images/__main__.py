"""Record a real daemon's run and build crash images from it: ``python -m tests.crash_images --images 2000 --seed 1``.

With ``--filesystem`` its volume has a journaled file system, which each image must still be.
Exit status 1 at the first image that breaks a promise; the trace is kept then, and with ``--keep FOLDER`` always.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from engine.file_trace import Kind, read_trace
from tests.crash_images.filesystem import Mounted, record_filesystem
from tests.crash_images.images import images
from tests.crash_images.recording import record
from tests.support.progress import Progress


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash_images", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--operations", type=int, default=250, help="of each of the writers in each life of the daemon")
    parser.add_argument("--kills", type=int, default=2, help="lives that end by SIGKILL; one more ends in peace")
    parser.add_argument("--keep", type=Path, help="a folder for pool and trace")
    parser.add_argument("--filesystem", action="store_true", help="with a file system in the volume")
    parser.add_argument("--files", type=int, default=12, help="that are made in each life then")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="twinvol-trace-")))
        folder.mkdir(parents=True, exist_ok=True)
        begun = time.monotonic()
        promises = None
        if options.filesystem:
            recording, contents = record_filesystem(folder, seed=options.seed, files=options.files, kills=options.kills)
            promises = Mounted(contents)
        else:
            recording = record(folder, seed=options.seed, operations=options.operations, kills=options.kills)
        kinds = Counter(entry.kind for entry in read_trace(recording.trace))
        print(
            f"recorded: {kinds[Kind.WRITE]} writes, {kinds[Kind.PUNCH]} punches, {kinds[Kind.SYNC]} syncs in "
            f"{recording.kills + 1} lives of a daemon; {len(recording.events)} events of its clients; "
            f"{time.monotonic() - begun:.0f} s",
            flush=True,
        )
        made: Counter[str] = Counter()
        progress = Progress(options.images, "crash images")
        for moment, seed, examine in images(recording, options.images, options.seed, promises=promises):
            try:
                made[examine()] += 1
                progress.at(made.total())
            except Exception as error:
                kept = options.keep or Path(tempfile.mkdtemp(prefix="twinvol-trace-")) / "run"
                if options.keep is None:
                    folder.rename(kept)
                print(f"FAILED at record {moment}, image {seed}: {type(error).__name__}: {error}\ntrace: {kept}")
                return 1
        for how, count in made.most_common():
            print(f"{count:6} {how}")
        print(f"{made.total()} crash images kept every promise; seed {options.seed}, {time.monotonic() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
