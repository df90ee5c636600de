"""Loaded by every Python that has this folder in its PYTHONPATH: tells figures of its process to whoever asks.

A thread answers on the Unix socket ``$TWINVOL_PROBE/PID`` with one line of JSON, after a collection of garbage: tasks
of asyncio that are not done, threads, open descriptors, resident memory, objects that the collector knows, and what
tracemalloc counts where it runs (PYTHONTRACEMALLOC). Each line that is sent is a question.
"""

import os

if "TWINVOL_PROBE" in os.environ:
    import socket
    import threading

    def _figures() -> bytes:
        import asyncio
        import gc
        import json
        import tracemalloc

        gc.collect()
        with open("/proc/self/statm") as file:  # noqa: PTH123 - before anything else is imported
            resident = int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
        figures = {
            "argv": open("/proc/self/cmdline").read().split("\0"),  # noqa: PTH123, SIM115
            "tasks": sum(not task.done() for task in list(asyncio.tasks._all_tasks)),
            "threads": threading.active_count(),
            "fds": len(os.listdir("/proc/self/fd")) - 1,  # noqa: PTH208
            "rss_bytes": resident,
            "objects": len(gc.get_objects()),
            "traced_bytes": tracemalloc.get_traced_memory()[0],
        }
        return json.dumps(figures).encode() + b"\n"

    def _answer(listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("rwb") as stream:
                for _ in stream:
                    stream.write(_figures())
                    stream.flush()

    _listener = socket.socket(socket.AF_UNIX)
    _listener.bind(os.path.join(os.environ["TWINVOL_PROBE"], str(os.getpid())))  # noqa: PTH118
    _listener.listen()
    threading.Thread(target=_answer, args=(_listener,), daemon=True, name="probe").start()
