"""TensorBoard through clu, without an import of TensorFlow or PyTorch.

clu 0.0.12 imports TensorFlow for one class, the SummaryWriter of `clu.metric_writers`
(CommonLoopUtils PR 358). Our own module takes its place before clu is imported; the rest of clu
stays as it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import sys
import time
import types
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


class SummaryWriter:
    """What agejax uses of clu's SummaryWriter, with tensorboardX's protos and event file.

    tensorboardX's own SummaryWriter hands its events to a thread: if that dies of a full disk, the
    run hangs in close(). Here every call has written when it returns, in about 3 ms, most of it
    fsync.

    Args:
      logdir: where the event file goes.
      resume_step: TensorBoard drops what an earlier process wrote after this step.

    Raises:
      UserError: the disk is full; so do all methods.
    """

    def __init__(self, logdir: str | os.PathLike[str], resume_step: int) -> None:
        self._logdir, self._resume_step = os.fspath(logdir), resume_step
        with files.disk(self._logdir):
            os.makedirs(self._logdir, exist_ok=True)
            # tensorboardX's file name holds the second; two starts in one must not share a file.
            self._file = event_file_writer.EventsWriter(
                os.path.join(self._logdir, "events"), filename_suffix=f".{time.time_ns()}"
            )
        self._add(resume_step + 1, session_log=SessionLog(status=SessionLog.START))

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        numbers = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._add(step, summary=Summary(value=numbers))

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        for name, image in images.items():
            self._add(step, summary=summary.image(name, image, dataformats="HWC"))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        for name, text in texts.items():
            self._add(step, summary=summary.text(name, text))

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Begins a run of the HPARAMS tab; `end_hparams` ends it.

        No list of metrics is written: TensorBoard would take the first run's for all runs beside
        it. Without one it takes all scalars of all runs.
        """
        _, start, _ = summary.hparams(dict(hparams), {})
        self._add(self._resume_step, summary=start)

    def end_hparams(self) -> None:
        """Lists the run as finished in the HPARAMS tab."""
        *_, end = summary.hparams({}, {})
        self._add(self._resume_step, summary=end)

    def flush(self) -> None:
        """Does nothing: every call has written when it returns."""

    def close(self) -> None:
        with files.disk(self._logdir):
            self._file.close()

    def _add(self, step: int, **content: Any) -> None:
        with files.disk(self._logdir):
            self._file.write_event(Event(wall_time=time.time(), step=step, **content))
            self._file.flush()


_seat = types.ModuleType("clu.metric_writers.summary_writer")
_seat.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
sys.modules.setdefault("clu.metric_writers.summary_writer", _seat)

from clu import metric_writers  # noqa: E402

metric_writers.MetricWriter.register(SummaryWriter)


class TensorBoard:
    """A `Logger` by clu's writers: to an event file in the run's folder, and to absl's log at INFO.

    They are not clu's asynchronous ones, whose errors come late and in another shape.

    Args:
      workdir: the folder of the run.
      start_step: TensorBoard drops what an earlier process wrote after this step.

    Raises:
      UserError: the disk is full; so do all methods.
    """

    run_id = None

    def __init__(self, workdir: pathlib.Path, start_step: int) -> None:
        self._file, self._start_step = SummaryWriter(workdir, start_step), start_step
        self._writer = metric_writers.MultiWriter([metric_writers.LoggingWriter(), self._file])

    def config(self, config: Mapping[str, Any]) -> None:
        """The config as text, and its settings as hyperparameters for the HPARAMS tab."""
        text = f"```json\n{json.dumps(config, indent=2)}\n```"
        self._writer.write_texts(self._start_step, {"config": text})
        self._writer.write_hparams(_plain(leaves(config)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._writer.write_scalars(step, values)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        self._writer.write_images(step, {name: image})

    def close(self, *, finished: bool) -> None:
        """Closes the file; the HPARAMS tab lists a finished run with its scalars' last values."""
        if finished:
            self._file.end_hparams()
        self._writer.close()


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as the HPARAMS tab takes them: numbers, texts, None for none, the rest as text."""
    return {
        k: v if v is None or isinstance(v, (int, float, str)) else json.dumps(v)
        for k, v in settings.items()
    }
