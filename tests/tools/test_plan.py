"""Steps compile for accelerators that are not there, and what is slow or imprecise in their programs is found."""

import argparse
import json

import jax
import jax.numpy as jnp
import pytest

from hfd_jax.core.errors import UserError
from tests.conftest import run_python
from tools.bench import hlo, plan, targets

PROGRAM = """\
HloModule jit_step, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias), {1}: (1, {}, may-alias) }

%sum (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[] parameter(0)
  %b = bf16[] parameter(1)
  ROOT %total = bf16[] add(%a, %b)
}

%moved (p: f32[4096,2048]) -> f32[2048,4096] {
  %p = f32[4096,2048]{1,0} parameter(0)
  ROOT %t = f32[2048,4096]{1,0} transpose(%p), dimensions={1,0}
}

ENTRY %main (x: f32[4096,2048], i: s32[4,1], u: bf16[4,8]) -> (f32[2048,4096], bf16[16,8]) {
  %x = f32[4096,2048]{1,0} parameter(0)
  %i = s32[4,1]{1,0} parameter(1)
  %u = bf16[4,8]{1,0} parameter(2)
  %f = f32[2048,4096]{1,0} fusion(%x), kind=kInput, calls=%moved, metadata={op_name="jit(step)/student/transpose(jvp(HFDNet))/HFDNet.encode/encoder/jit(_resize)/dot_general"}
  %r = f32[2048,4096]{1,0} all-reduce(%f), to_apply=%sum
  %z = bf16[16,8]{1,0} broadcast()
  %s = bf16[16,8]{1,0} scatter(%z, %i, %u), to_apply=%sum, metadata={op_name="jit(step)/scatter-add"}
  ROOT %out = (f32[2048,4096]{1,0}, bf16[16,8]{1,0}) tuple(%r, %s)
}
"""


def test_suspects_and_bytes_of_a_program():
    program = hlo.Program(PROGRAM)
    whole, rows = 4 * 4096 * 2048, 2 * 16 * 8
    assert program.aliased == 2 and program.collectives() == {"all-reduce": (1, whole)}
    assert hlo.grouped(program.suspects()) == [
        ("low-precision scatter sum", "scatter-add", 1, rows),
        ("transpose", "student/HFDNet/encoder, backward", 1, whole),
    ]
    assert program.moved() == 4 * whole + rows + (2 * rows + 4 * 4 + 2 * 4 * 8)


def test_operations_of_products_and_convolutions():
    def function(x, kernel):
        y = jax.lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jax.lax.cond(y.sum() > 0, lambda: y @ jnp.ones((5, 7)), lambda: jnp.zeros((1, 16, 16, 7)))

    jaxpr = jax.make_jaxpr(jax.jit(function))(jnp.ones((1, 8, 8, 3)), jnp.ones((2, 2, 3, 5)))
    assert plan.operations(jaxpr) == 2 * 16 * 16 * 5 * 3 + 2 * 16 * 16 * 5 * 7


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("a100:1", r"--target=a100:1: expected a chip \(h100, v5e, v6e\) and a number"),
        ("h100", "--target=h100: expected a chip"),
        ("v5e:8", "--target=v5e:8: expected the chips along two axes, as v5e:2x4"),
    ],
)
def test_invalid_targets_are_named(target, message):
    with pytest.raises(UserError, match=message):
        targets.parse(target)


def test_a_missing_compiler_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'jax_plugins.xla_cuda13 not found\): pip install -e "\.\[plan-gpu\]"'):
        targets.check_compiler(targets.parse("h100:1"))
    with pytest.raises(UserError, match=r'libtpu not found\): pip install -e "\.\[plan-tpu\]"'):
        targets.check_compiler(targets.parse("v5e:2x4"))


def test_scaling_needs_collectives():
    with pytest.raises(UserError, match="--scaling needs the collectives .* as --target=h100:4"):
        plan.check_scaling(argparse.Namespace(scaling=[8]), targets.parse("h100:1"))


def test_the_student_step_compiles_for_a_gpu(tmp_path):
    """Without a GPU; everything that is asserted would be slow or imprecise there."""
    if any(not targets.installed(module) for module in targets.CUDA):
        pytest.skip("the GPU's compiler is not installed: pip install -r requirements-plan.txt -c constraints.txt")
    flags = ("--what=plan", "--target=h100:1", "--steps=student_step", "--batch=2", "--size=64", "--dtype=bfloat16")
    output = f"--json={tmp_path / 'plan.json'}"
    run_python("-m", "tools.benchmark", *flags, "--config=configs/default.py", "--config.model.width=16", output)
    (found,) = json.loads((tmp_path / "plan.json").read_text())["plans"]
    kinds = {kind for kind, *_ in found["suspects"]}
    assert not kinds & {"float64", "sort", "conditional", "host transfer", "low-precision scatter sum"}
    assert found["aliased"] == found["state_arrays"] > 500, "the whole state is donated"
    assert found["flops"] > 0 and found["moved"] > 0
