"""Measures what ImageNet weights gain in a few minutes, MobileNetV3-Small on real faces:

    python -m experiments.transfer_check --source=UTKFace.tar.gz \\
        --pretrained=mobilenet_v3_small_imagenet_features.safetensors

The same schedule (450 steps of 64 images: 1.9 epochs of UTKFace) from the weights and from scratch,
three seeds each, scored on the split "val", which chooses nothing here. Recorded in
experiments/results/transfer_check.json.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import pathlib
import sys
from collections.abc import Sequence

from agejax import files
from agejax.configs import mobilenet_v3_utk
from agejax.evaluation import replicates
from agejax.process.command import run_command
from experiments import arms


def main(argv: Sequence[str]) -> None:
    parser = arms.parser("transfer_check", __doc__ or "")
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--output", default="experiments/results/transfer_check.json")
    args = parser.parse_args(argv[1:])

    config = mobilenet_v3_utk.get_config()
    config.data.source = args.source
    config.total = {"steps": args.steps}
    config.eval.every = {"percent": 100.0}
    config.checkpoint.every = {"percent": 25.0}
    config.model.options = {"norm_momentum": 0.1}
    config.optim.ema = 0.99  # 0.999 would remember the start of so short a run
    configs = {"scratch": config.copy_and_resolve_references(), "imagenet": config}
    configs["imagenet"].model.pretrained = args.pretrained
    chosen = {name: arms.Arm(each) for name, each in configs.items()}
    scores = arms.run(chosen, range(args.seeds), pathlib.Path(args.folder), "val")

    groups = scores["scratch"].columns["group"]
    losses = {name: arm.losses("age") for name, arm in scores.items()}
    result = {
        "command": "python -m experiments.transfer_check",
        "commit": arms.commit(),
        "commits": {name: arm.commits for name, arm in scores.items()},
        "steps": args.steps,
        "intervals": replicates.method(args.seeds),
        "age_mae": {
            name: replicates.mean_interval(values, groups) for name, values in losses.items()
        },
        "difference": replicates.mean_interval(losses["imagenet"] - losses["scratch"], groups),
        "gender_error": {
            name: replicates.mean_interval(arm.losses("gender"), groups)
            for name, arm in scores.items()
        },
    }
    files.write_json(pathlib.Path(args.output), result)
    for name, row in result["age_mae"].items():
        print(f"{name}: val age MAE {row['mean']:.2f}, 95 % {row['ci95']}, seeds {row['seeds']}")
    difference = result["difference"]
    print(f"imagenet - scratch: {difference['mean']:.2f} years, 95 % {difference['ci95']}")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
