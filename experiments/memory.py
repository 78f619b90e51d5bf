"""The memory of this process, as Linux tells it."""

from __future__ import annotations

import pathlib
import re
import threading

STATUS = pathlib.Path("/proc/self/status")
EVERY = 0.02  # seconds between two looks


def status(field: str) -> int:
    """Bytes, such as of VmSize, RssAnon or the peak VmHWM; 0 where the system does not say."""
    if not STATUS.exists():
        return 0
    match = re.search(rf"^{field}:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE)
    return 1024 * int(match[1]) if match else 0


class Peak:
    """The most memory in use while inside, looked at every `EVERY`, but for files that are mapped.

    Those the kernel takes back when it needs room, and VmHWM, its own peak, counts them.
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
