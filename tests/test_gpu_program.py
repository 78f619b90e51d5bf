"""What a step launches on a GPU, read from the text of its program."""

import importlib
import json
import re

import pytest
from test_lowering import traced

from agejax.process.command import run_command
from agejax.training import sharding
from experiments.benchmarks import gpu_program

# Two fusions, a copy, a call whose computation has a product and a loop, and an all-reduce.
TEXT = """HloModule jit_step, is_scheduled=true

FileNames
1 "/x/agejax/training/augment.py"

FunctionNames
1 "crop"

FileLocations
1 {file_name_id=1 function_name_id=1 line=1}

StackFrames
1 {file_location_id=1 parent_frame_id=1}

%fused (p: bf16[4,8], w: f32[1000]) -> f32[4,8] {
  %w = f32[1000]{0} parameter(1)
  %p = bf16[4,8]{1,0} parameter(0)
  %small = bf16[1000]{0} convert(%w)
  %part = bf16[16]{0} slice(%small), slice={[0:16]}
  ROOT %convert.1 = f32[4,8]{1,0} convert(%p)
}

%body (q: f32[4,8]) -> f32[4,8] {
  %q = f32[4,8]{1,0} parameter(0)
  ROOT %dot.1 = f32[4,8]{1,0} custom-call(%q, %q), custom_call_target="__cublas$gemm"
}

%branch (r: f32[4,8]) -> f32[4,8] {
  %r = f32[4,8]{1,0} parameter(0)
  ROOT %copy.1 = f32[4,8]{1,0} copy(%r), metadata={op_name="jit(step)/transpose(jvp())/x"}
}

%never (s: f32[4,8]) -> f32[4,8] {
  %s = f32[4,8]{1,0} parameter(0)
  ROOT %copy.2 = f32[4,8]{1,0} copy(%s)
}

ENTRY %main (x: bf16[4,8], y: f32[1000]) -> (f32[4,8], f32[]) {
  %x = bf16[4,8]{1,0} parameter(0)
  %y = f32[1000]{0} parameter(1)
  %fusion.1 = f32[4,8]{1,0} fusion(%x, %y), kind=kLoop, calls=%fused, metadata={stack_frame_id=1}
  %loop = f32[4,8]{1,0} while(%fusion.1), condition=%no, body=%body
  %some = f32[4,8]{1,0} conditional(%x, %loop, %loop), branch_computations={%branch, %branch}
  %all-reduce-start.1 = f32[4,8]{1,0} all-reduce-start(%some), to_apply=%add
  %all-reduce-done.1 = f32[4,8]{1,0} all-reduce-done(%all-reduce-start.1)
  ROOT %both = (f32[4,8]{1,0}, f32[4,8]{1,0}) tuple(%all-reduce-done.1, %some)
}
"""


class Compiled:
    """What is asked of a `jax.stages.Compiled`."""

    argument_size_in_bytes = output_size_in_bytes = temp_size_in_bytes = 2**20
    alias_size_in_bytes = 2**19

    def as_text(self):
        return TEXT

    def memory_analysis(self):
        return self


def test_a_program_is_counted_by_what_it_reaches():
    found = gpu_program.facts(Compiled())
    assert found == {
        "launches": 4,
        "phases": {"augmentation": 1, "forward": 0, "backward": 1, "update": 2},
        "kinds": {"fusion": 1, "all-reduce-start": 1, "__cublas$gemm": 1, "copy": 1},
        "copies": 1,
        "float32_products": 1,
        "converts": 2,
        "collectives": 1,
        "gigabytes": pytest.approx(0),
        "peak_mebibytes": 2.5,
    }
    bodies, launched = gpu_program.parse(TEXT)
    moved = {each.name: gpu_program.bytes_moved(each, bodies) for each in launched}
    assert moved == {
        "fusion.1": 64 + 16 * 4 + 128,  # of the vector, only a slice
        "dot.1": 3 * 128, "copy.1": 2 * 128,
        "all-reduce-start.1": 2 * 128, "all-reduce-done.1": 2 * 128,
    }  # fmt: skip


def test_what_grew_is_named():
    then = dict.fromkeys(gpu_program.WATCHED, 100)
    assert gpu_program.worse(then, then) == []
    assert gpu_program.worse(then | {"launches": 101, "gigabytes": 101}, then) == [
        "launches 100 -> 101"
    ]
    assert gpu_program.worse(then | {"gigabytes": 103}, then) == ["gigabytes 100 -> 103"]


def test_results_are_kept_and_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_program.Program, "compile", lambda self: Compiled())
    output = tmp_path / "programs.json"
    name = gpu_program.PROGRAMS[0].name
    arguments = ["gpu_program", f"--output={output}", f"--only=^{re.escape(name)}"]
    gpu_program.main(arguments)
    record = json.loads(output.read_text())
    assert list(record["programs"]) == [name]
    assert f"| {name} | 4 | 1 | 1 | 2 | 1 |" in output.with_suffix(".md").read_text()
    record["programs"][name]["copies"] = 0
    output.write_text(json.dumps(record))
    capsys.readouterr()
    gpu_program.main(arguments)
    assert "worse than recorded: copies 0 -> 1" in capsys.readouterr().out
    assert run_command(gpu_program.main, ["gpu_program", "--only=nothing"]) == 2
    assert name in capsys.readouterr().err


def test_products_of_a_bfloat16_step_for_a_gpu_are_of_bfloat16_but_for_the_heads():
    config = importlib.import_module("agejax.configs.mobilenet_v3_utk").get_config()
    config.model.dtype = "bfloat16"
    program, _ = traced(config, sharding.create_mesh(1, 1))
    text = program.lower(lowering_platforms=("cuda",)).as_text()
    products = re.findall(r"stablehlo\.(?:dot_general|convolution).* : \((.*)\) ->", text)
    single = [each for each in products if "f32" in each]
    assert len(products) > 100
    # The hidden layer and three heads: forward, and the gradients of inputs and of kernels.
    assert len(single) == 4 * 3, single
