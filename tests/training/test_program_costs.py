"""What a program is said to take, against what can be counted by hand."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.training.loop import program_costs


def flops(function, *arguments):
    return program_costs.matrix_flops(jax.jit(function).trace(*arguments).jaxpr)


A, B = jnp.ones((3, 5)), jnp.ones((5, 7))


def test_a_product_is_two_operations_per_multiply_and_add():
    assert flops(jnp.dot, A, B) == 2 * 3 * 5 * 7
    batched = flops(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), jnp.ones((4, 3, 5)), jnp.ones((4, 5, 7)))
    assert batched == 4 * 2 * 3 * 5 * 7


def test_a_scan_counts_as_often_as_it_runs():
    w = jnp.ones((5, 5))
    assert flops(lambda a: jax.lax.scan(lambda x, _: (x @ w, None), a, None, 11)[0], A) == 11 * 2 * 3 * 5 * 5


def test_a_loop_that_may_stop_counts_as_often_as_it_may_run():
    w = jnp.ones((5, 5))
    step_ = lambda c: (c[0] @ w, c[1] + 1)  # noqa: E731
    loop = lambda a: jax.lax.while_loop(lambda c: (c[1] < 9) & (jnp.sum(c[0]) < 1e3), step_, (a, 0))  # noqa: E731
    assert flops(loop, A) == 9 * 2 * 3 * 5 * 5
    unknown = lambda a: jax.lax.while_loop(lambda c: jnp.sum(c[0]) < 1e3, step_, (a, 0))  # noqa: E731
    assert flops(unknown, A) == 2 * 3 * 5 * 5


def test_a_gradient_is_two_products_and_remat_one_more():
    loss = lambda a, b: jnp.sum(jnp.tanh(a @ b))  # noqa: E731
    one = 2 * 3 * 5 * 7
    assert flops(jax.grad(loss, (0, 1)), A, B) == 3 * one
    twice = jax.checkpoint(lambda a, b: jnp.sum(jnp.tanh(jnp.tanh(a @ b) @ B.T)))
    assert flops(jax.grad(twice, (0, 1)), A, B) > flops(jax.grad(twice.__wrapped__, (0, 1)), A, B)


def test_the_dearer_branch_counts_and_a_rule_of_differentiation_does_not():
    both = lambda p, a: jax.lax.cond(p, lambda a: a @ B @ B.T, lambda a: a, a)  # noqa: E731
    assert flops(both, True, A) == 2 * 2 * 3 * 5 * 7
    either = lambda p, a: jax.lax.cond(p, lambda a: a @ B @ B.T, lambda a: a @ (B @ B.T), a)  # noqa: E731
    assert flops(either, True, A) == 2 * 5 * 7 * 5 + 2 * 3 * 5 * 5 > 2 * 2 * 3 * 5 * 7

    @jax.custom_vjp
    def product(a, b):
        return a @ b

    product.defvjp(lambda a, b: (a @ b, (a, b)), lambda saved, dy: (dy @ saved[1].T, saved[0].T @ dy))
    assert flops(product, A, B) == 2 * 3 * 5 * 7
    assert flops(jax.grad(lambda a, b: jnp.sum(product(a, b)), (0, 1)), A, B) == 3 * 2 * 3 * 5 * 7


def test_needs_are_arguments_results_and_what_is_in_between():
    x = jnp.ones((256, 1024), jnp.float32)
    found = program_costs.needs(jax.jit(lambda x: jnp.sort(x + 1, 0) @ x.T).lower(x).compile())
    assert found.arguments == x.nbytes and found.outputs == 256 * 256 * 4 and found.temporaries >= x.nbytes
    assert found.total == found.arguments + found.outputs + found.temporaries
    # Where the compiler knows the peak it decides, and what two programs share is no part of it.
    known = program_costs.MemoryNeeds(100, 10, 50, 120)
    assert known.total == 120 and known.without(30) == program_costs.MemoryNeeds(70, 10, 50, 90)
    assert program_costs.MemoryNeeds(100, 10, 50).without(30) == program_costs.MemoryNeeds(70, 10, 50)
    donated = program_costs.needs(jax.jit(lambda x: x * 2, donate_argnums=0).lower(x).compile())
    assert donated.outputs == 0 and donated.total == x.nbytes


def test_bytes_per_device_of_arrays_and_shapes():
    mesh = make_mesh(1, 1, 1)
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    shape = jax.ShapeDtypeStruct((6, 2), jnp.bfloat16, sharding=where)
    assert program_costs.bytes_per_device({"a": shape, "b": jnp.ones(3)}) == 24 + 12
    cut = jax.sharding.NamedSharding(AbstractMesh((3, 2), ("data", "tensor")), where.spec)
    assert program_costs.bytes_per_device(jax.ShapeDtypeStruct((6, 2), jnp.bfloat16, sharding=cut)) == 24 // 3


def test_what_a_device_offers(monkeypatch):
    class Card:
        def memory_stats(self):
            return {"bytes_limit": 80 * 10**9, "bytes_in_use": 5}

    class Elsewhere:
        device_kind = "TPU v5 lite"

        def memory_stats(self):
            raise jax.errors.JaxRuntimeError("MemoryStats is only supported for addressable PjRt devices.")

    assert program_costs.available(Card()) == 80 * 10**9
    assert program_costs.available(Elsewhere()) == int(15.75 * 2**30)
    lines = Path("/proc/meminfo").read_text().splitlines()
    machine = next(line for line in lines if line.startswith("MemTotal"))
    assert program_costs.available() == pytest.approx(int(machine.split()[1]) * 1024, rel=0.01)
    monkeypatch.setattr(jax, "local_device_count", lambda: 8)
    assert program_costs.available() * 8 == pytest.approx(int(machine.split()[1]) * 1024, rel=0.01)
