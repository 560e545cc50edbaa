"""Slices by name, and that what is none, or has no compiler here, is refused in a line that says what would work."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.planning import slices


@pytest.mark.parametrize(
    ("text", "count", "is_tpu"),
    [("v5e:8x8", 64, True), ("v5p:2x2x2", 8, True), ("h100:64", 64, False), ("a100:1", 1, False)],
)
def test_a_slice(text, count, is_tpu):
    (found,) = slices.slices_of(text)
    assert (found.name, found.count, found.is_tpu) == (text, count, is_tpu)
    assert found.chip.name == text.partition(":")[0]


def test_what_a_run_finds_of_a_chips_memory(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    assert slices.slices_of("v5e:2x4")[0].memory == int(15.75 * 2**30)
    assert slices.slices_of("h100:8")[0].memory == int(0.75 * 79.1 * 2**30)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    assert slices.slices_of("h100:8")[0].memory == int(0.95 * 79.1 * 2**30)


def test_a_scale_takes_the_slices_with_so_many_chips():
    assert [x.name for x in slices.slices_of("v6e", "8,64,256")] == ["v6e:2x4", "v6e:8x8", "v6e:16x16"]
    assert [x.name for x in slices.slices_of("h100", "8, 64")] == ["h100:8", "h100:64"]


def test_larger_slices_of_a_family():
    assert [x.name for x in slices.larger(slices.slices_of("v5e:4x8")[0])] == [
        "v5e:8x8",
        "v5e:8x16",
        "v5e:16x16",
    ]
    assert [x.count for x in slices.larger(slices.slices_of("h100:8")[0])][:3] == [16, 32, 64]


@pytest.mark.parametrize(
    ("text", "scale", "words"),
    [
        ("v7x:8x8", "", "'v7x:8x8' is no slice; use one of"),
        ("v5e", "", "names no shape of a slice; write for example v5e:"),
        ("v5e:64", "", "names no shape of a slice"),
        ("v5e:0x4", "", "names no shape of a slice"),
        ("v6e:4x4x4", "", "names no shape of a slice; write for example v6e:4x8"),
        ("v5p:2x2", "", "names no shape of a slice; write for example v5p:4x4x4"),
        ("v5e:3x5", "", "there is no slice v5e:3x5; use v5e: with one of 2x2, 2x4"),
        ("v5e:32x32", "", "there is no slice v5e:32x32"),
        ("", "", "'' is no slice; use one of"),
        ("h100", "", "names no number of GPUs; write for example h100:8"),
        ("h100:12", "", "no whole hosts of 8"),
        ("v6e:2x4", "8,64", "goes with a family alone, --plan=v6e"),
        ("v6e", "8", "two or more chip counts; write for example 8,64,256"),
        ("v6e", "8,x", "two or more chip counts"),
        ("v6e", "8,9", "no slice of v6e has 9 chips; there are 4, 8, 16"),
    ],
)
def test_what_is_no_slice_says_what_is(text, scale, words):
    with pytest.raises(UserError) as error:
        slices.slices_of(text, scale)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "fix"), [("v5e:2x4", "pip install 'libtpu=="), ("h100:8", "pip install 'jax[cuda13]'")]
)
def test_a_missing_compiler_is_named(text, fix, monkeypatch):
    monkeypatch.setattr(slices, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the compiler for") as error:
        slices.devices_of(slices.slices_of(text)[0])
    assert fix in str(error.value)


def test_a_shape_that_the_compiler_does_not_know(monkeypatch):
    monkeypatch.setattr(slices, "find_spec", lambda name: name)

    def refuse(**_):
        raise RuntimeError("INVALID_ARGUMENT: not divisible\nby the bounds")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", refuse)
    with pytest.raises(UserError) as error:
        slices.devices_of(slices.slices_of("v5p:2x2x3")[0])
    assert "v5p:2x2x3 is no slice that libtpu knows (INVALID_ARGUMENT: not divisible by the bounds)" in str(
        error.value
    )
    assert "v5p: with one of 2x2x1, 2x2x2" in str(error.value)


@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs libtpu (pip install -r requirements-plan.txt)")
@pytest.mark.parametrize("text", ["v5e:2x4", "v6e:4x4", "v5p:2x2x2"])
def test_devices_of_a_tpu_slice(text):
    code = (
        "import sys; from rlhf_jax.planning import slices; slices.prepare_environment()\n"
        "(found,) = slices.slices_of(sys.argv[1]); devices = slices.devices_of(found)\n"
        "from rlhf_jax.training.loop.program_costs import chip_of\n"
        "assert len(devices) == found.count and chip_of(devices[0].device_kind) == found.chip, devices"
    )
    subprocess.run([sys.executable, "-c", code, text], check=True, env={**os.environ, "XLA_FLAGS": ""})
