"""rollout.tensor: the policy samples on a mesh of its own, the same tokens as on the training's."""

from pathlib import Path

import jax
import pytest
import tiny_farm
from quick import EIGHT
from same_runs import assert_same_curve
from wide import WIDE

from rlhf_jax.errors import UserError
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.parallel.sampling_mesh import check_sampled_rows, sampling_mesh


@pytest.mark.timeout(600)
def test_eight_devices_sample_the_same_however_they_share_the_copy(farm, tmp_path):
    """And, in the wide tests, a run with it, whose models and moments wait on the host, is the run without."""
    script = str(Path(__file__).with_name("sampling_on_eight.py"))
    out = tiny_farm.finish(tiny_farm.start([script, str(farm), str(tmp_path)], XLA_FLAGS=EIGHT))
    for line in ("(1, 8, 1) 2 agrees", "(1, 8, 1) 8 agrees", "(2, 2, 2) 1 agrees", "planned as run"):
        assert line in out.splitlines(), out
    (refused,) = [line for line in out.splitlines() if "cannot split" in line]
    assert refused.startswith("rollout.tensor: 8 devices cannot split mlp=60 of layers/mlp/"), refused
    if WIDE:
        assert_same_curve(*(tiny_farm.rows(tmp_path / name) for name in ("cut", "as it is")))


def test_a_mesh_of_its_own():
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    assert sampling_mesh(mesh, 0) is mesh and sampling_mesh(mesh, 1) is mesh
    words = r"rollout\.tensor: 3 does not divide 1 devices; use one of 1, or 0 for mesh\.tensor"
    with pytest.raises(UserError, match=words):
        sampling_mesh(mesh, 3)
    check_sampled_rows(mesh, 0, 8, 2)
    words = r"rollout\.tensor: 1 makes 1 groups of devices, .* the 3 prompts .*microbatches=2; use a multiple of 2"
    with pytest.raises(UserError, match=words):
        check_sampled_rows(mesh, 1, 3, 2)
