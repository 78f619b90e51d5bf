"""PyTorch at its best: channels last, a fused AdamW, autocast, a DataLoader.

Networks are torchvision's, the ViT is timm's; torchvision augments images on the host.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, RandomSampler

from experiments.benchmarks.contestants import case as case_lib
from experiments.benchmarks.contestants.case import Case, Data, Turn, timed
from experiments.parity.torch_reference import declare_torchvision_operators

ENDLESS = 10**9  # draws of a sampler that never ends
PREFETCHED = 2  # batches that a DataLoader's worker reads ahead
Batch = tuple[torch.Tensor, ...]  # images uint8 [B, S, S, 3], age f32 [B], gender and ethnicity [B]


def backbone(case: Case) -> tuple[nn.Module, int]:
    """(normalised images [B, 3, S, S] -> features [B, C], C)."""
    declare_torchvision_operators()
    if case.network == "vit_s16":
        import timm

        name = "vit_small_patch16_224"
        vit = timm.create_model(name, pretrained=False, num_classes=0, img_size=case.image_size)
        return vit, vit.num_features
    from torchvision import models

    network = getattr(models, case.network)(weights=None)
    last = "fc" if hasattr(network, "fc") else "classifier"
    layer = getattr(network, last)
    setattr(network, last, nn.Identity())
    first = layer if isinstance(layer, nn.Linear) else layer[0]
    return network, first.in_features


class Network(nn.Module):
    """Images uint8 [B, S, S, 3] -> age [B], standardised, gender logit [B], ethnicity [B, 5]."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.backbone, width = backbone(case)
        self.dropout = nn.Dropout(case_lib.DROPOUT)
        self.age, self.gender = nn.Linear(width, 1), nn.Linear(width, 1)
        self.ethnicity = nn.Linear(width, case_lib.CLASSES)
        self.register_buffer("mean", torch.tensor(case_lib.MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(case_lib.STD).view(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = images.permute(0, 3, 1, 2).float() / 255  # stays channels last in memory
        features = self.dropout(self.backbone((x - self.mean) / self.std))
        return self.age(features)[:, 0], self.gender(features)[:, 0], self.ethnicity(features)


def loss_of(network: Network, batch: Batch) -> torch.Tensor:
    """L1 of the age, cross-entropies of gender and ethnicity."""
    images, age, gender, ethnicity = batch
    years, logit, logits = network(images)
    return (
        functional.l1_loss(years, (age - case_lib.AGE_MEAN) / case_lib.AGE_STD)
        + case_lib.SHARE * functional.binary_cross_entropy_with_logits(logit, gender.float())
        + case_lib.SHARE * functional.cross_entropy(logits, ethnicity.long())
    )


def predict(network: Network, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Years [B], probabilities of gender [B] and ethnicity [B, 5]."""
    years, logit, logits = network(images)
    return (
        years * case_lib.AGE_STD + case_lib.AGE_MEAN,
        logit.float().sigmoid(),
        logits.float().softmax(dim=1),
    )


class Faces(Dataset):
    """JPEG files, or decoded images where `images` is given; `change` transforms each PIL image.

    Items are those of a `Batch` without the dimension B.
    """

    def __init__(
        self, data: Data, change: Callable[[Image.Image], Image.Image], images: Any = None
    ) -> None:
        self.files, self.images, self.change = data.files(), images, change
        self.labels = [torch.from_numpy(values) for values in _labels(data)]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Batch:
        if self.images is None:
            image = Image.open(self.files[i]).convert("RGB")
        else:
            image = Image.fromarray(self.images[i])
        pixels = torch.from_numpy(np.array(self.change(image)))
        return pixels, *(values[i] for values in self.labels)


class Decoded(Dataset):
    """Unchanged decoded images, a whole batch in one gather."""

    def __init__(self, data: Data, images: np.ndarray) -> None:
        self.images, self.labels = images, _labels(data)

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        columns = (self.images, *self.labels)
        return tuple(torch.from_numpy(np.take(values, rows, axis=0)) for values in columns)


def _labels(data: Data) -> list[np.ndarray]:
    labels = data.labels()
    return [labels[name] for name in ("age", "gender", "ethnicity")]


def augmentation(size: int) -> Callable[[Image.Image], Image.Image]:
    """The light recipe, one PIL image at a time."""
    declare_torchvision_operators()
    from torchvision.transforms import v2

    jitter = case_lib.JITTER
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=case_lib.CROP),
            v2.RandomHorizontalFlip(case_lib.FLIP),
            v2.RandomRotation(case_lib.DEGREES),
            v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter),
        ]
    )


def resized(image: Image.Image, size: int) -> Image.Image:
    """The whole image at another size."""
    return image.resize((size, size), Image.Resampling.BILINEAR)


def whole(batch: Batch) -> Batch:
    """Returns what `Decoded` gives: it is already a batch."""
    return batch


class WithTorch(case_lib.Contestant):
    """PyTorch, eager or compiled."""

    def __init__(self, case: Case, data: Data, compiled: bool = False) -> None:
        super().__init__(case, data)
        self.compiled = compiled
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(case_lib.CORES)
        # As JAX does by default: float32 matrix products in TF32 where available.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True

    def train(self) -> Turn:
        batch = self.resident()
        return self.ready(functools.partial(self.make_step(), batch))

    def evaluation(self) -> Turn:
        network, answer = self.network().eval(), self.maybe_compiled(predict)
        images = self.resident()[0]

        @torch.inference_mode()
        def step() -> None:
            with self.autocast():
                answer(network, images)

        return self.ready(step)

    def loop(self, files: bool) -> Turn:
        """Training with augmentation on the host, from JPEG files or from the decoded images."""
        images = None if files else self.data.images(self.data.edge)
        faces = Faces(self.data, augmentation(self.case.image_size), images)
        read, train = self.read(faces, case_lib.CORES), self.make_step()
        return self.ready(lambda: train(self.put(next(read))), PREFETCHED * case_lib.CORES)

    def input(self, workers: int, files: bool) -> Turn:
        """Batches only, from JPEG files or from the decoded images."""
        size = self.case.image_size
        if files:
            read = self.read(Faces(self.data, functools.partial(resized, size=size)), workers)
        else:
            read = self.read(Decoded(self.data, self.data.images(size)), workers, whole)
        return self.ready(functools.partial(next, read), PREFETCHED * workers)

    # ---- parts ----------------------------------------------------------------------------------

    def network(self) -> Network:
        """A fresh network, kept for `facts`."""
        self.made = Network(self.case).to(self.device, memory_format=torch.channels_last)
        return self.made

    def make_step(self) -> Callable[[Batch], None]:
        """One step of AdamW on a batch."""
        network, loss = self.network().train(), self.maybe_compiled(loss_of)
        parameters = list(network.parameters())
        optimizer = torch.optim.AdamW(
            parameters, case_lib.LEARNING_RATE, weight_decay=0.0, fused=True
        )

        def step(batch: Batch) -> None:
            optimizer.zero_grad(set_to_none=True)
            with self.autocast():
                value = loss(network, batch)
            value.backward()
            nn.utils.clip_grad_norm_(parameters, case_lib.CLIP_NORM)
            optimizer.step()

        return step

    def maybe_compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function) if self.compiled else function

    def autocast(self) -> torch.autocast:
        low = self.case.dtype == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=low)

    def ready(self, step: Callable[[], Any], ahead: int = 0) -> Turn:
        """The turn of a step, after a first one that compiles."""
        wait = torch.cuda.synchronize if self.device.type == "cuda" else lambda: None
        turn = timed(step, wait, ahead)
        turn(1)
        return turn

    def resident(self) -> Batch:
        """The first images of the data, on the device."""
        columns = (self.data.images(self.case.image_size), *_labels(self.data))
        rows = slice(0, self.case.batch)
        return self.put(tuple(torch.from_numpy(np.array(values[rows])) for values in columns))

    def put(self, batch: Batch) -> Batch:
        return tuple(values.to(self.device, non_blocking=True) for values in batch)

    def read(
        self, faces: Dataset, workers: int, collate: Callable[..., Any] | None = None
    ) -> Iterator[Batch]:
        """Endless shuffled batches."""
        loader = DataLoader(
            faces,
            self.case.batch,
            sampler=RandomSampler(faces, num_samples=ENDLESS),
            num_workers=workers,
            collate_fn=collate,
            pin_memory=self.device.type == "cuda",
        )
        return iter(loader)

    def facts(self) -> dict[str, Any]:
        names = ("torch", "torchvision", "timm")
        return {
            "parameters": sum(p.numel() for p in self.made.parameters()),
            "versions": {name: metadata.version(name) for name in names},
        }

    def device_bytes(self) -> int | None:
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None


create = WithTorch
