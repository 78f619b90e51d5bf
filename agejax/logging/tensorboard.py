"""TensorBoard through clu, without TensorFlow.

clu 0.0.12 imports TensorFlow for one class, the SummaryWriter of `clu.metric_writers`
(CommonLoopUtils PR 358). Seating our own module in its place before clu is imported leaves the rest
of clu as it is. Also where TensorFlow is installed, nothing here imports it.
"""

from __future__ import annotations

import os
import sys
import time
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorboardX import event_file_writer, summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from agejax import files


class SummaryWriter:
    """What clu expects of its SummaryWriter, with tensorboardX's protos and event file.

    tensorboardX's own SummaryWriter hands its events to a thread: where that dies of a full disk,
    the run hangs in close(). Here every call has written when it returns.

    Args:
      logdir: where the event file goes.
      resume_step: TensorBoard then forgets what an earlier process wrote after this step.

    Raises:
      UserError: the disk is full; so do all methods.
    """

    def __init__(self, logdir: str | os.PathLike[str], resume_step: int | None = None) -> None:
        self._logdir = os.fspath(logdir)
        with files.disk(self._logdir):
            os.makedirs(self._logdir, exist_ok=True)
            # tensorboardX's file name holds the second; two starts in one must not share a file.
            self._file = event_file_writer.EventsWriter(
                os.path.join(self._logdir, "events"), filename_suffix=f".{time.time_ns()}"
            )
        if resume_step is not None:
            self._add(resume_step + 1, session_log=SessionLog(status=SessionLog.START))

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        values = [
            Summary.Value(tag=name, simple_value=float(np.asarray(value)))
            for name, value in scalars.items()
        ]
        self._add(step, summary=Summary(value=values))

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Images [H, W, C] or [N, H, W, C], uint8 or float in [0, 1]; several go side by side."""
        for name, value in images.items():
            image = np.asarray(value)
            layout = "HWC" if image.ndim == 3 else "NHWC"
            self._add(step, summary=summary.image(name, image, dataformats=layout))

    def write_videos(self, step: int, videos: Any) -> None:
        raise NotImplementedError("a face engine has no videos to write")

    def write_audios(self, step: int, audios: Any, *, sample_rate: int) -> None:
        raise NotImplementedError("a face engine has no sounds to write")

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        for name, text in texts.items():
            self._add(step, summary=summary.text(name, text))

    def write_histograms(
        self, step: int, arrays: Mapping[str, Any], num_buckets: Mapping[str, int] | None = None
    ) -> None:
        for name, value in arrays.items():
            buckets = (num_buckets or {}).get(name) or 30
            self._add(step, summary=summary.histogram(name, np.asarray(value), bins=buckets))

    def write_summaries(self, step: int, values: Any, metadata: Any = None) -> None:
        raise NotImplementedError("raw tensor summaries need TensorFlow's protos")

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Numbers and strings as they are, what else there is as text."""
        plain = {k: v if isinstance(v, (int, float)) else str(v) for k, v in hparams.items()}
        for part in summary.hparams(plain, {}):
            self._add(0, summary=part)

    def flush(self) -> None:
        with files.disk(self._logdir):
            self._file.flush()

    def close(self) -> None:
        with files.disk(self._logdir):
            self._file.close()

    def _add(self, step: int, **content: Any) -> None:
        with files.disk(self._logdir):
            self._file.write_event(Event(wall_time=time.time(), step=int(step), **content))
            self._file.flush()


_seat = types.ModuleType("clu.metric_writers.summary_writer")
_seat.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
sys.modules.setdefault("clu.metric_writers.summary_writer", _seat)

from clu import metric_writers  # noqa: E402

metric_writers.MetricWriter.register(SummaryWriter)


def create_writer(
    logdir: str | os.PathLike[str], *, just_logging: bool = False, resume_step: int | None = None
) -> metric_writers.MetricWriter:
    """clu's writer to absl's log at level INFO and to event files in `logdir`.

    Not clu's asynchronous one, whose errors come late and in another shape; a log takes about 3 ms,
    most of it fsync.

    Args:
      just_logging: write no files; for all processes but the first.
      resume_step: TensorBoard then forgets what an earlier process wrote after this step.
    """
    writers: list[Any] = [metric_writers.LoggingWriter()]
    if not just_logging:
        writers.append(SummaryWriter(logdir, resume_step))
    return metric_writers.MultiWriter(writers)
