"""TensorBoard through clu, without TensorFlow.

clu 0.0.12 imports TensorFlow for one class, the SummaryWriter of `clu.metric_writers`
(CommonLoopUtils PR 358). Seating our own module in its place before clu is imported leaves the rest
of clu as it is: its interface, its asynchronous and its multiple writers.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorboardX


class SummaryWriter:
    """What clu expects of its SummaryWriter, writing event files through tensorboardX."""

    def __init__(self, logdir: str | os.PathLike[str]) -> None:
        self._writer = tensorboardX.SummaryWriter(str(logdir))

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, float(np.asarray(value)), step)

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        for name, value in images.items():
            batch = np.asarray(value)
            batch = batch if batch.ndim == 4 else batch[None]
            self._writer.add_images(name, batch, step, dataformats="NHWC")

    def write_videos(self, step: int, videos: Mapping[str, Any]) -> None:
        for name, value in videos.items():
            batch = np.asarray(value)
            batch = batch if batch.ndim == 5 else batch[None]
            self._writer.add_video(name, batch.transpose(0, 1, 4, 2, 3), step)

    def write_audios(self, step: int, audios: Mapping[str, Any], *, sample_rate: int) -> None:
        for name, value in audios.items():
            for i, sound in enumerate(np.asarray(value)):
                self._writer.add_audio(f"{name}/{i}", sound, step, sample_rate)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        for name, text in texts.items():
            self._writer.add_text(name, text, step)

    def write_histograms(
        self, step: int, arrays: Mapping[str, Any], num_buckets: Mapping[str, int] | None = None
    ) -> None:
        for name, value in arrays.items():
            buckets = (num_buckets or {}).get(name)
            self._writer.add_histogram(name, np.asarray(value), step, bins=buckets or 30)

    def write_pointcloud(self, step: int, point_clouds: Any, **options: Any) -> None:
        raise NotImplementedError("tensorboardX writes no point clouds in clu's form")

    def write_summaries(self, step: int, values: Any, metadata: Any = None) -> None:
        raise NotImplementedError("raw tensor summaries need TensorFlow's protos")

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        self._writer.add_text("hparams", "\n".join(f"- {k}: {v}" for k, v in hparams.items()), 0)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


_seat = types.ModuleType("clu.metric_writers.summary_writer")
_seat.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
sys.modules.setdefault("clu.metric_writers.summary_writer", _seat)

from clu import metric_writers  # noqa: E402

metric_writers.MetricWriter.register(SummaryWriter)


def create_writer(
    logdir: str | os.PathLike[str], *, just_logging: bool = False
) -> metric_writers.MetricWriter:
    """clu's default writer: event files in `logdir`, from a thread of its own.

    Args:
      just_logging: write no files; for all processes but the first.
    """
    return metric_writers.create_default_writer(str(logdir), just_logging=just_logging)
