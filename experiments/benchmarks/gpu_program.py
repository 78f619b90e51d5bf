"""What a step launches on an H100, without one: make gpu-program

    .venv-gpu/bin/python -m experiments.benchmarks.gpu_program [--only=REGEX]

XLA compiles for a GPU on a machine that has none, and the optimised program shows every kernel,
copy, product and collective of a step. It gives no times, and XLA's autotuning is absent. The train
and eval steps of three networks, and a train step for eight GPUs, are compared with what
experiments/results/gpu_program.json records; the command reports what got worse, then writes that
file and gpu_program.md anew. It takes several CPU minutes per program.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import argparse
import collections
import dataclasses
import json
import math
import pathlib
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from agejax import files, heads
from agejax.configs import mobilenet_v3_utk
from agejax.data import pipeline
from agejax.errors import UserError
from agejax.logging import profile
from agejax.models import pretrained
from agejax.process.command import run_command
from agejax.training import optim, sharding, state, step
from experiments.arms import commit
from experiments.benchmarks.contestants.ours import as_source

OUTPUT = pathlib.Path(__file__).parents[1] / "results" / "gpu_program.json"
TARGET = pathlib.Path(__file__).with_name("h100.txtpb")  # openxla's GpuTargetConfigProto
PHASES = ("augmentation", "forward", "backward", "update")
# Opcodes that launch nothing of their own.
FREE = {
    "parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all",
    *profile.CONTROL,
}  # fmt: skip
CALLS = re.compile(
    r"(?:to_apply|body|condition|calls|true_computation|false_computation)=%?([\w.\-]+)"
)
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TYPE = re.compile(r"\b(pred|[suf]\d+|bf16|c64|f8\w+)\[([\d,]*)\]")
PRODUCTS = ("dot", "convolution", "__cudnn$conv", "__cublas")
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# What should not grow, and by how much it may before the command calls it worse.
WATCHED = {
    "launches": 1.0, "copies": 1.0, "float32_products": 1.0, "converts": 1.02,
    "collectives": 1.0, "gigabytes": 1.02, "peak_mebibytes": 1.02,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Program:
    """A step of configs/mobilenet_v3_utk.py in bfloat16, with another network and image size."""

    kind: str  # "train" or "eval"
    network: str
    edge: int  # pixels
    batch: int = 64  # images per device
    devices: int = 1
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of XLA

    @property
    def name(self) -> str:
        where = f" on {self.devices} GPUs" if self.devices > 1 else ""
        return f"{self.kind} step of {self.network}{where}, {self.edge} px, {self.batch} images"

    def compile(self) -> jax.stages.Compiled:
        """The step's program, compiled for H100s."""
        config = mobilenet_v3_utk.get_config()
        if self.network != config.model.name:
            config.model.name, config.model.options = self.network, {}
        config.model.image_size = config.data.image_size = self.edge
        config.model.dtype = "bfloat16"
        config.data.batch_size = size = self.batch * self.devices
        config = pretrained.settle(config)
        mesh = gpus(self.devices)
        labels = {
            "age": np.linspace(1, 90, size, dtype=np.float32),
            "gender": np.arange(size, dtype=np.int32) % 2,
            "ethnicity": np.arange(size, dtype=np.int32) % 5,
        }
        source = as_source(np.zeros((size, self.edge, self.edge, 3), np.uint8), labels)
        facts = heads.Facts.of(source.labels, source.label_names)
        model, initialise = state.create_model(config, heads.create(config.heads, facts))
        schedule = optax.constant_schedule(1e-3)
        optimizer = optim.create_optimizer(config.optim, schedule, model.parameters)
        like = state.abstract(config, initialise, optimizer, mesh)
        split = sharding.batch_sharding(mesh)
        batch = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split)
            for name, x in pipeline.gather(source, np.arange(size)).items()
        }
        if self.kind == "train":
            lowered = step.make_train_step(config, model, optimizer, like).lower(like, batch)
        else:
            lowered = step.make_eval_step(config, model).lower(*like.averaged(), batch)
        return lowered.compile(dict(self.options))


# Without autotuning, XLA takes tiles that Triton cannot use for a product of ViT-S.
CUBLAS = {"xla_gpu_enable_triton_gemm": False}
PROGRAMS = [
    *(
        Program(kind, network, edge, options=options)
        for network, edge, options in (
            ("mobilenet_v3_small", 128, {}), ("resnet50", 128, {}), ("vit_s16", 224, CUBLAS),
        )
        for kind in ("train", "eval")
    ),
    Program("train", "mobilenet_v3_small", 128, devices=8),
]  # fmt: skip


def gpus(count: int) -> Mesh:
    """A mesh (data, fsdp) of H100s: no array can be there, but programs can be compiled for it."""
    topology = topologies.get_topology_desc(
        "h100", "cuda", target_config=TARGET.read_text(), topology=f"1x1x{count}"
    )
    devices = np.array(topology.devices).reshape(count, 1)
    return Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a program's text.

    Attributes:
      opcode: or the target of a custom call.
      inputs: names of the operands; the number of a parameter.
      results, operands: dtypes and bytes of each.
      calls: the computation of a fusion; else "".
    """

    name: str
    opcode: str
    inputs: tuple[str, ...]
    results: tuple[tuple[str, int], ...]
    operands: tuple[tuple[str, int], ...]
    calls: str


def parse(text: str) -> tuple[dict[str, list[Instruction]], list[Instruction]]:
    """The text of an optimised program -> ({computation: its instructions}, those launched).

    Launched are those of the entry and of what it reaches by calls, loops and branches, once each:
    what a loop repeats, and what a branch leaves out, does not show.
    """
    lines: dict[str, list[str]] = {}
    current, entry = None, ""
    for line in text.splitlines():
        if current is None:
            if head := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
                current = head[2]
                lines[current] = []
                entry = current if head[1] else entry
        elif line.startswith("}"):
            current = None
        else:
            lines[current].append(line)
    types = {
        found["name"]: _types(line[: found.start("opcode")])
        for body in lines.values()
        for line in body
        if (found := profile.INSTRUCTION.match(line))
    }
    bodies = {name: list(_instructions(body, types)) for name, body in lines.items()}
    reached: list[str] = []
    waiting = [entry]
    while waiting:
        name = waiting.pop()
        if name in lines and name not in reached:
            reached.append(name)
            for line in lines[name]:
                found = profile.INSTRUCTION.match(line)
                if found and found["opcode"] in (*profile.CONTROL, "async-start"):
                    waiting += CALLS.findall(line)
                    for group in BRANCHES.findall(line):
                        waiting += [each.strip().lstrip("%") for each in group.split(",")]
    launched = [each for name in reached for each in bodies[name] if each.opcode not in FREE]
    return bodies, launched


def _instructions(
    body: Sequence[str], types: Mapping[str, tuple[tuple[str, int], ...]]
) -> Iterator[Instruction]:
    for line in body:
        if found := profile.INSTRUCTION.match(line):
            arguments = line[found.end() :].partition(")")[0]
            name, opcode = found["name"], found["opcode"]
            of_operand = r"\d+" if opcode == "parameter" else r"(?<=%)[\w.\-]+"
            inputs = tuple(re.findall(of_operand, arguments))
            operands = tuple(each for key in inputs for each in types.get(key, ()))
            target = re.search(r'custom_call_target="([^"]+)"', line)
            calls = re.search(r"calls=%?([\w.\-]+)", line) if opcode == "fusion" else None
            yield Instruction(
                name, target[1] if target else opcode, inputs, types[name], operands,
                calls[1] if calls else "",
            )  # fmt: skip


def bytes_moved(each: Instruction, bodies: Mapping[str, Sequence[Instruction]]) -> int:
    """Bytes of an instruction's results and operands; of an operand that it slices, the slices."""
    total = sum(size for _, size in each.results)
    body = bodies.get(each.calls, ())
    parameters = [inner for inner in body if inner.opcode == "parameter"]
    parameters.sort(key=lambda inner: int(inner.inputs[0]))
    if len(parameters) != len(each.operands):
        return total + sum(size for _, size in each.operands)
    for parameter, (_, whole) in zip(parameters, each.operands, strict=True):
        total += round(whole * min(1.0, _share_read(parameter, body)))
    return total


def _share_read(value: Instruction, body: Sequence[Instruction]) -> float:
    """The share of a value that is read where all that reads it are slices, of its dtype or not."""
    users = [each for each in body if value.name in each.inputs]
    if not users:  # the result
        return 1.0
    share = 0.0
    for user in users:
        if user.opcode in ("slice", "dynamic-slice"):
            share += user.results[0][1] / value.results[0][1]
        elif user.opcode in ("convert", "bitcast"):
            share += _share_read(user, body)
        else:
            return 1.0
    return share


def _types(text: str) -> tuple[tuple[str, int], ...]:
    """ "(f32[2,3]{1,0}, u8[0]{0})" -> (("f32", 24), ("u8", 0))."""
    found = []
    for dtype, shape in TYPE.findall(text):
        bits = re.search(r"\d+", dtype)
        elements = math.prod(int(n) for n in shape.split(",") if n)
        found.append((dtype, elements * max(int(bits[0]) if bits else 8, 8) // 8))
    return tuple(found)


def facts(compiled: jax.stages.Compiled, trains: bool = True) -> dict[str, Any]:
    """What a program costs, as JSON data.

    launches: of kernels, copies and library calls, also by phase and by kind; a program that trains
      nothing has the forward phase only.
    copies: launches that only copy or transpose an array.
    float32_products: matrix products and convolutions with a float32 operand.
    converts: changes of dtype, most of them inside of kernels.
    collectives: by kind; a pair of start and done counts once.
    gigabytes: what launches read and write (`bytes_moved`), an upper limit of what memory moves.
    peak_mebibytes: of arguments, results and temporary arrays.
    """
    text = compiled.as_text() or ""
    bodies, launched = parse(text)
    launched = [each for each in launched if not each.opcode.endswith("-done")]
    everything = [each for body in bodies.values() for each in body]
    ops = profile.parse(text)
    phases = collections.Counter(ops[each.name].phase if trains else "forward" for each in launched)
    kinds = collections.Counter(each.opcode for each in launched)
    moved = sum(bytes_moved(each, bodies) for each in launched)
    stats = compiled.memory_analysis()
    peak = (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.temp_size_in_bytes
    )
    collectives = {k: n for k, n in kinds.items() if k.removesuffix("-start") in COLLECTIVES}
    return {
        "launches": len(launched),
        "phases": {phase: phases[phase] for phase in PHASES},
        "kinds": dict(kinds.most_common()),
        "copies": kinds["copy"] + kinds["copy-start"],
        "float32_products": sum(
            each.opcode.startswith(PRODUCTS) and "f32" in [dtype for dtype, _ in each.operands[:2]]
            for each in everything
        ),
        "converts": sum(each.opcode == "convert" for each in everything),
        "collectives": sum(collectives.values()),
        "gigabytes": round(moved / 1e9, 3),
        "peak_mebibytes": round(peak / 2**20, 1),
    }


def worse(now: Mapping[str, Any], recorded: Mapping[str, Any]) -> list[str]:
    """One line for every figure that grew past what `WATCHED` allows."""
    return [
        f"{key} {recorded[key]:,} -> {now[key]:,}"
        for key, allowed in WATCHED.items()
        if key in recorded and now[key] > allowed * recorded[key]
    ]


def as_markdown(record: Mapping[str, Any]) -> str:
    """The record as tables: totals, then launches by kind."""
    recorded = record["programs"]
    programs = {each.name: recorded[each.name] for each in PROGRAMS if each.name in recorded}
    columns = [key.replace("_", " ") for key in WATCHED]
    text = (
        "# What a step launches on an H100\n\nCompiled without a GPU by `make gpu-program`: "
        "configs/mobilenet_v3_utk.py in bfloat16 with each network. No times, no autotuning; what "
        "a loop repeats counts once. Gigabytes are what all launches read and write.\n\n"
        f"| program | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}\n"
    )
    for name, each in programs.items():
        text += f"| {name} | {' | '.join(f'{each[key]:,}' for key in WATCHED)} |\n"
    text += f"\n| launches of | {' | '.join(PHASES)} |\n|{'---|' * (len(PHASES) + 1)}\n"
    for name, each in programs.items():
        text += f"| {name} | {' | '.join(str(each['phases'][phase]) for phase in PHASES)} |\n"
    text += "\n| program | launches by kind |\n|---|---|\n"
    for name, each in programs.items():
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in each["kinds"].items())
        text += f"| {name} | {kinds} |\n"
    return text


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", metavar="REGEX", help="programs by name")
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT, metavar="FILE")
    parser.add_argument(
        "--text", type=pathlib.Path, metavar="FOLDER", help="write the programs there"
    )
    arguments = parser.parse_args(argv[1:])
    jax.config.update("jax_platforms", "cpu")  # the plugin would look for a GPU
    chosen = [each for each in PROGRAMS if re.search(arguments.only, each.name)]
    if not chosen:
        names = "; ".join(each.name for each in PROGRAMS)
        raise UserError(f"--only: {arguments.only!r} matches none of: {names}")
    files.check_file(arguments.output, "--output")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    record = {"programs": {}}
    if arguments.output.exists():
        record = json.loads(arguments.output.read_text())
    for program in chosen:
        seconds = time.process_time()
        compiled = program.compile()
        seconds = time.process_time() - seconds
        now = facts(compiled, program.kind == "train")
        print(f"{program.name}: {now['launches']:,} launches, {now['phases']}", flush=True)
        for line in worse(now, record["programs"].get(program.name, {})):
            print(f"  worse than recorded: {line}", flush=True)
        made = {"compile_cpu_seconds": round(seconds), "jax": jax.__version__, "commit": commit()}
        record["programs"][program.name] = now | made
        if arguments.text:
            arguments.text.mkdir(parents=True, exist_ok=True)
            files.write_text(arguments.text / f"{program.name}.hlo", compiled.as_text() or "")
        files.write_json(arguments.output, record)
        files.write_text(arguments.output.with_suffix(".md"), as_markdown(record))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
