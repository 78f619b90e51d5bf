"""TensorBoard's event files, by tensorboardX, and without an import of TensorFlow or PyTorch."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from agejax import files
from agejax.settings import leaves


@contextlib.contextmanager
def _no_torch() -> Iterator[None]:
    """tensorboardX imports PyTorch where that is installed, for a check of types: seconds."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # `import torch` then fails
    try:
        yield
    finally:
        del sys.modules["torch"]


with _no_torch():
    from tensorboardX import event_file_writer, summary
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary


class TensorBoard:
    """A `Logger` that writes an event file into the run's folder.

    tensorboardX's own SummaryWriter hands its events to a thread: if that dies of a full disk, the
    run hangs in close(). Here every call has written when it returns, in about 3 ms, most of it
    fsync.

    Args:
      workdir: the folder of the run.
      start_step: TensorBoard drops what an earlier process wrote after this step.

    Raises:
      UserError: the disk is full; so do all methods.
    """

    run_id = None

    def __init__(self, workdir: pathlib.Path, start_step: int) -> None:
        self._workdir, self._start_step = workdir, start_step
        with files.disk(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
            # tensorboardX's file name holds the second; two starts in one must not share a file.
            self._file = event_file_writer.EventsWriter(
                os.fspath(workdir / "events"), filename_suffix=f".{time.time_ns()}"
            )
        self._add(start_step + 1, session_log=SessionLog(status=SessionLog.START))

    def config(self, config: Mapping[str, Any]) -> None:
        """The config as text, and its settings as hyperparameters for the HPARAMS tab."""
        text = f"```json\n{json.dumps(config, indent=2)}\n```"
        self._add(self._start_step, summary=summary.text("config", text))
        _, start, _ = summary.hparams(_plain(leaves(config)), {})
        self._add(self._start_step, summary=start)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        numbers = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step, summary=Summary(value=numbers))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        self._add(step, summary=summary.image(name, image, dataformats="HWC"))

    def close(self, *, finished: bool) -> None:
        """Closes the file; the HPARAMS tab lists a finished run with the last value of each scalar.

        No list of metrics is written: TensorBoard would take the first run's for all runs beside
        it. Without one it takes all scalars of all runs.
        """
        if finished:
            *_, end = summary.hparams({}, {})
            self._add(self._start_step, summary=end)
        with files.disk(self._workdir):
            self._file.close()

    def _add(self, step: int, **content: Any) -> None:
        with files.disk(self._workdir):
            self._file.write_event(Event(wall_time=time.time(), step=step, **content))
            self._file.flush()


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as the HPARAMS tab takes them: numbers, texts, None for none, the rest as text."""
    return {
        k: v if v is None or isinstance(v, (int, float, str)) else json.dumps(v)
        for k, v in settings.items()
    }
