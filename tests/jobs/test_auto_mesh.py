"""mesh.fsdp=auto: which meshes are tried, which one is taken, and that the run is then that of this mesh by hand."""

import contextlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_farm
from ml_collections import ConfigDict
from quick import QUICK
from wide import wide

from rlhf_jax import ranges
from rlhf_jax.errors import UserError
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.settings import load_page
from rlhf_jax.settings.overrides import set_field
from rlhf_jax.training.checkpoints.workdir import StartAgainError, one_writer
from rlhf_jax.training.run import memory_check, session

DEVICES = "--xla_force_host_platform_device_count"
# Devices on a few cores may reach a collective late; XLA gives up on those that take 40 seconds.
FLAGS = f"{QUICK} --xla_cpu_collective_call_terminate_timeout_seconds=600 --xla_cpu_collective_timeout_seconds=600"
PAGES = Path(__file__).parents[2] / "configs"


def page(**mesh):
    return ConfigDict({"mesh": {"data": 1, "fsdp": "auto", "tensor": 1} | mesh})


@pytest.fixture
def devices(monkeypatch):
    """Gives a run so many devices, on so many hosts."""

    def give(count, hosts=1, kind="cpu"):
        found = [SimpleNamespace(process_index=i * hosts // count, device_kind=kind) for i in range(count)]
        monkeypatch.setattr(memory_check, "present_devices", lambda: found)

    return give


@pytest.mark.parametrize(
    ("count", "hosts", "tensor", "tried"),
    [
        (1, 1, 1, [(1, 1)]),
        (8, 1, 1, [(8, 1), (4, 2), (2, 4), (1, 8)]),
        (8, 1, 2, [(4, 1), (2, 2), (1, 4)]),
        (8, 1, 8, [(1, 1)]),
        (64, 8, 1, [(8, 8), (4, 16), (2, 32), (1, 64)]),
        (24, 3, 1, [(3, 8), (2, 12), (1, 24)]),
        (16, 4, 2, [(4, 2), (2, 4), (1, 8)]),
        (16, 4, 8, [(2, 1), (1, 2)]),  # a copy of the model already spans hosts
    ],
)
def test_the_fewest_devices_that_may_share_are_tried_first(count, hosts, tensor, tried, devices):
    devices(count, hosts)
    found = memory_check.meshes_to_try(page(tensor=tensor))
    assert found == [{"data": data, "fsdp": fsdp, "tensor": tensor} for data, fsdp in tried]


@pytest.mark.parametrize(("count", "least"), [(4, 1), (8, 1), (16, 8)])
def test_gpus_are_on_hosts_of_eight_even_with_a_process_for_each(count, least, devices):
    devices(count, count, "NVIDIA H100 80GB HBM3")
    assert memory_check.meshes_to_try(page())[0]["fsdp"] == least


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (
            {"data": 4},
            "mesh.data: 4, and mesh.fsdp is auto, which chooses mesh.data, too; leave mesh.data at 1",
        ),
        ({"tensor": -1}, "mesh.tensor: -1, and mesh.fsdp is auto"),
    ],
)
def test_what_goes_against_it_is_refused(sizes, words, devices):
    devices(8)
    with pytest.raises(UserError) as refused:
        session.mesh_sizes(page(**sizes), trains=True)
    assert str(refused.value).startswith(words) and "\n" not in str(refused.value)


@pytest.mark.parametrize("tensor", [3, 16])
def test_a_tensor_that_does_not_divide_the_devices_is_refused_as_ever(tensor, devices):
    devices(8)
    sizes = session.mesh_sizes(page(tensor=tensor), trains=True)
    with pytest.raises(UserError, match=rf"^mesh\.tensor: .*tensor={tensor} does not divide 8 devices"):
        mesh_lib._resolve(sizes, 8)


def test_numbers_stay_and_what_trains_nothing_takes_all(devices):
    devices(16, 2)
    assert session.mesh_sizes(page(data=2, fsdp=4), trains=True) == {"data": 2, "fsdp": 4, "tensor": 1}
    assert session.mesh_sizes(page(tensor=2), trains=False) == {"data": 1, "fsdp": -1, "tensor": 2}
    assert session.mesh_sizes(page(), trains=True) == {"data": 2, "fsdp": 8, "tensor": 1}
    with memory_check.auto_is(16):
        assert session.mesh_sizes(page(), trains=True) == {"data": 1, "fsdp": 16, "tensor": 1}
    assert session.mesh_sizes(page(), trains=True)["fsdp"] == 8


@pytest.mark.parametrize(
    ("totals", "taken", "said"),
    [
        ({1: 1, 2: 1}, 1, "auto takes 1, with mesh.data 8: 1.00 GiB needed on each device, 2.00 GiB there"),
        (
            {1: 9, 2: 3, 4: 2, 8: 1},
            4,
            "auto takes 4, with mesh.data 2: 2.00 GiB needed on each device, 2.00 GiB there; "
            "1 would need at least 9.00 GiB; 2 would need at least 3.00 GiB; the run starts again on it",
        ),
        # Then the run itself says what is too much, with its advice.
        ({1: 9, 2: 8, 4: 7, 8: 6}, 8, "auto takes 8, with mesh.data 1: 6.00 GiB needed on each device, 2.00"),
        ({1: 9, 2: None, 4: 1}, 4, "there; 1 would need at least 9.00 GiB; the run"),
    ],
)
def test_the_first_that_fits_is_taken_and_said(totals, taken, said, devices, monkeypatch, capsys):
    devices(8)
    monkeypatch.setattr(memory_check, "available", lambda: 2 << 30)
    sized = {n: None if x is None else x << 30 for n, x in totals.items()}
    again = pytest.raises(StartAgainError) if taken != 1 else contextlib.nullcontext()
    with again as raised:
        memory_check.choose_fsdp(page(), 1, lambda sizes, there: sized[sizes["fsdp"]])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("mesh.fsdp: ") and said in line
    if taken != 1:
        with raised.value.within:
            assert session.mesh_sizes(page(), trains=True)["fsdp"] == taken


def test_a_run_is_started_again_once_and_gives_its_folder_back(tmp_path):
    runs = []

    @one_writer
    def run(config, workdir):
        runs.append(list(memory_check._chosen))
        raise StartAgainError(memory_check.auto_is(4))

    with pytest.raises(StartAgainError):
        run(None, str(tmp_path))
    assert runs == [[], [4]] and memory_check._chosen == []


def test_a_page_takes_the_word_or_a_number():
    found = load_page(str(PAGES / "sft.py"))
    assert found.mesh.fsdp == -1 and json.loads(found.to_json())["mesh"]["fsdp"] == -1
    for value in ("auto", 8, -1):
        set_field(found, "mesh.fsdp", value)
        ranges.check_ranges(found.to_dict())
    for value in ("outo", 0, 1.5, True):
        set_field(found, "mesh.fsdp", value)
        with pytest.raises(
            UserError, match=r"^mesh\.fsdp: .*; use auto, a whole number of at least 1, or -1"
        ):
            ranges.check_ranges(found.to_dict())


@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [2, pytest.param(8, marks=wide)])
def test_a_run_that_chose_its_mesh_is_the_run_on_that_mesh(count, farm, tmp_path):
    script = str(Path(__file__).with_name("auto_on_devices.py"))
    out = tiny_farm.finish(
        tiny_farm.start([script, str(farm), str(tmp_path)], XLA_FLAGS=f"{FLAGS} {DEVICES}={count}")
    )
    line = (
        rf"^mesh\.fsdp: auto takes 2, with mesh\.data {count // 2}: .*; 1 would need .* starts again on it$"
    )
    assert re.search(line, out, re.M)
    found, given = (tiny_farm.rows(tmp_path / name) for name in ("auto", "given"))
    for name in ("loss", "grad_norm", "eval/loss"):
        values = [[row[name] for row in rows if name in row] for rows in (found, given)]
        assert values[0] == values[1] and values[0], name
    weights = [(tmp_path / name / "export/model.safetensors").read_bytes() for name in ("auto", "given")]
    assert weights[0] == weights[1]
    assert json.loads((tmp_path / "auto/config.json").read_text())["mesh"]["fsdp"] == "auto"
