"""The memory of this process, as Linux reports it."""

from __future__ import annotations

import pathlib
import re
import threading

STATUS = pathlib.Path("/proc/self/status")
EVERY = 0.02  # seconds between two samples


def status(field: str) -> int:
    """Bytes of a field such as VmSize, RssAnon or the peak VmHWM; 0 where the system lacks it."""
    if not STATUS.exists():
        return 0
    match = re.search(rf"^{field}:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE)
    return 1024 * int(match[1]) if match else 0


class Peak:
    """The peak memory in use inside the context, without mapped files, sampled every `EVERY`.

    The kernel reclaims mapped files when it needs room, but its own peak, VmHWM, counts them.
    """

    bytes = 0

    def __enter__(self) -> Peak:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(EVERY):
            self.bytes = max(self.bytes, status("RssAnon") + status("RssShmem"))

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
