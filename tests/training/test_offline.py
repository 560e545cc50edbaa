"""The driver of methods on fixed rows, by a method of one number: which rows, at which rates, what is evaluated."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_farm

from rlhf_jax.errors import UserError
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.placement import init_sharded
from rlhf_jax.objectives.reduce import masked_mean
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.training.run import load_models, offline
from rlhf_jax.training.run.encoded_rows import Rows
from rlhf_jax.training.run.session import Network, Session

MODEL = ModelConfig(vocab_size=4, width=2, layers=1, heads=1, kv_heads=1, head_dim=2, ff=2)
SMALL = {"data.train": "", "data.eval": "", "epochs": 3.0, "batch_size": 4, "log_every": 1, "eval_every": 0}
SGD = {"name": "sgd", "b1": 0.0, "learning_rate": 0.1, "schedule": "linear", "warmup_steps": 0}
SGD |= {"weight_decay": 0.0, "max_grad_norm": 0.0}


class Numbers:
    """So many rows, of which row i holds the number values[i] and i + 1 tokens; keeps the batches it was asked for."""

    def __init__(self, values):
        self.values, self.asked = np.float32(values), []
        tokens = np.arange(1, len(values) + 1)
        self.rows = Rows(len(values), tokens, self.make)

    def make(self, index_B, rows):
        self.asked.append(index_B.tolist())
        return {"number": self.values[index_B[rows]]}


SEEN = []  # the sizes of the batches that the loss was traced with


def loss_of(model, page):
    """How far one weight is from the numbers of a batch, and from what the devices have added to it."""

    def loss_fn(params, batch):
        numbers_B = batch["number"] + batch.get("added", 0.0)
        SEEN.append(len(numbers_B))
        error_B = params["norm"]["scale"][0] - numbers_B
        return {"loss": masked_mean(error_B**2, batch.get("weight", jnp.ones(numbers_B.shape)))}

    return loss_fn


def run(folder, train, held, *, complete=None, loss=loss_of, **changes):
    """(the weight after training, rows of metrics)."""
    optimizer = {f"optimizer.{name}": value for name, value in SGD.items()}
    page = tiny_farm.settings("sft", folder, **SMALL | optimizer | changes)
    mesh = make_mesh(1, 1, 1)
    session = Session(page, str(folder), mesh, "", None, "", load_models.lora_settings(page.lora))
    network = Network(MODEL, lambda: init_sharded(MODEL, mesh, page.seed))
    method = offline.Offline(loss, train.rows, held.rows, ("loss",), complete=complete)
    params = offline.train_offline(session, network, method)
    return float(params["norm"]["scale"][0]), tiny_farm.rows(folder)


def test_every_epoch_is_a_new_order_of_all_rows_drawn_with_the_seed(tmp_path):
    orders = {}
    for seed in (0, 1):
        train = Numbers(range(8))
        run(tmp_path / str(seed), train, Numbers([0]), seed=seed)
        _, *batches = train.asked  # the first is for the shapes alone
        assert [len(batch) for batch in batches] == [4] * 6
        orders[seed] = np.reshape(batches, (3, 8)).tolist()
        assert all(sorted(order) == list(range(8)) for order in orders[seed])
        assert len({tuple(order) for order in orders[seed]}) == 3
    assert orders[0][0] != orders[1][0]


def test_a_run_by_hand(tmp_path):
    """Gradient descent on one weight, its rate, its average, the numbers of every step and of evaluations."""
    train, held = Numbers([1.0, -2.0, 0.5, 3.0, 1.5, -1.0, 2.5]), Numbers([0.25, 4.0, -1.0, 2.0, 0.5])
    given = {"optimizer.ema": 0.6, "epochs": 2.0, "eval_every": 3, "save_every": 2, "keep_checkpoints": 2}
    found, rows = run(tmp_path, train, held, **given)
    batches = train.asked[1:]
    assert len(batches) == 4  # 14 rows in steps of 4: the last step begins another epoch
    weight = average = 1.0  # norms are born as ones
    steps = [row for row in rows if "loss" in row]
    wanted = {}
    for i, batch in enumerate(batches):
        error = weight - train.values[batch]
        assert steps[i]["loss"] == pytest.approx((error**2).mean(), rel=1e-5)
        assert steps[i]["num_tokens"] == sum(row + 1 for row in batch)
        assert steps[i]["epoch"] == pytest.approx((i + 1) * 4 / 7)
        assert steps[i]["learning_rate"] == pytest.approx(0.1 * (1 - i / 4))
        assert steps[i]["grad_norm"] == pytest.approx(abs(2 * error.mean()), rel=1e-5)
        weight -= 0.1 * (1 - i / 4) * 2 * error.mean()
        average = 0.6 * average + 0.4 * weight
        wanted[i + 1] = ((average - held.values) ** 2).mean()
    evaluations = {row["step"]: row["eval/loss"] for row in rows if "eval/loss" in row}
    assert evaluations == pytest.approx({step: wanted[step] for step in (3, 4)}, rel=1e-5)
    assert found == pytest.approx(average, rel=1e-5)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [2, 4]


def test_what_is_completed_and_added_takes_part_in_steps_and_evaluations(tmp_path):
    """Rows get what only the weights can tell; the devices add to every batch."""
    train, held, others = Numbers([1.0, 2.0]), Numbers([3.0]), Numbers([5.0, 6.0])
    train.rows = train.rows.with_columns({"added": np.zeros(2, np.float32)})  # room for what is added

    def complete(start):
        assert start.trained["norm"]["scale"].tolist() == [1.0, 1.0]
        return offline.Completed(
            others.rows, held.rows, lambda batch, params: batch | {"added": 2 * batch["number"]}
        )

    still = {"optimizer.learning_rate": 1e-9, "epochs": 1.0, "batch_size": 2}
    _, rows = run(tmp_path, train, held, complete=complete, **still)
    assert train.asked == [[0]] and len(others.asked) == 1
    assert rows[0]["loss"] == pytest.approx(((1 - 15) ** 2 + (1 - 18) ** 2) / 2)
    assert rows[-1]["eval/loss"] == pytest.approx((1 - 9) ** 2)


def test_a_step_takes_its_batch_in_microbatches(tmp_path):
    """As many as the page says: a loss that sees more rows at once takes more memory, and is the same number."""
    found = []
    for count, rows in ((1, 4), (2, 2)):
        SEEN.clear()
        weight, metrics = run(tmp_path / str(count), Numbers(range(8)), Numbers([0]), microbatches=count)
        found.append((weight, [row["loss"] for row in metrics if "loss" in row]))
        assert set(SEEN) == {rows, 4}  # evaluations take whole batches
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-6)


def test_an_adapter_is_drawn_with_the_seed(tmp_path):
    drawn = []

    def complete(start):
        assert all("_lora_" in name for name in start.trained["layers"]["mlp"])
        drawn.append(np.asarray(start.trained["layers"]["mlp"]["down_lora_a"]))
        raise UserError("enough")

    for i, seed in enumerate((0, 0, 1)):
        with pytest.raises(UserError, match=r"^enough$"):
            given = {"lora.rank": 1, "lora.targets": "down", "seed": seed}
            run(tmp_path / str(i), Numbers([1.0]), Numbers([0]), complete=complete, **given)
    assert drawn[0].tolist() == drawn[1].tolist() and (drawn[0] != drawn[2]).all()


def test_the_loop_is_told_the_operations_of_a_step(tmp_path, monkeypatch):
    """Those of matrix products over a batch: they become the share of the devices' speed that is used."""
    told, fit = [], offline.fit

    def watched(*args, flops, **options):
        told.append(flops)
        return fit(*args, flops=flops, **options)

    def product_of(model, page):
        def loss_fn(params, batch):
            both_B = (batch["number"][:, None] * jnp.ones(2)) @ params["norm"]["scale"]
            return {"loss": masked_mean(both_B, batch.get("weight", jnp.ones(both_B.shape)))}

        return loss_fn

    monkeypatch.setattr(offline, "fit", watched)
    run(tmp_path, Numbers(range(8)), Numbers([0]), loss=product_of)
    # A batch of 4 rows times 2 weights, and the gradient of the weights; 2 operations for each of the products.
    assert told == [2 * (2 * 4 * 2)]


@pytest.mark.parametrize(("mode", "best"), [("min", 4), ("max", 1)])
def test_the_best_state_is_the_result_where_a_metric_is_named(tmp_path, mode, best):
    """The weight goes half of the way to -1 at every step, and is nearest to the held-out -0.9 after the fourth."""
    train, held = Numbers([-1.0, -1.0]), Numbers([-0.9])
    given = {"optimizer.learning_rate": 0.25, "optimizer.schedule": "constant", "epochs": 6.0}
    given |= {"batch_size": 2, "log_every": 4, "eval_every": 1, "save_every": 0, "keep_checkpoints": 1}
    found, rows = run(tmp_path, train, held, **given, best_metric="eval/loss", best_mode=mode)
    weights = {step: 2 * 0.5**step - 1 for step in range(1, 7)}
    losses = {step: (weight + 0.9) ** 2 for step, weight in weights.items()}
    evaluated = {row["step"]: row["eval/loss"] for row in rows if "eval/loss" in row}
    assert evaluated == pytest.approx(losses, abs=1e-6)
    assert found == pytest.approx(weights[best], abs=1e-6)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [best, 6]
    assert [row["step"] for row in rows if "loss" in row] == [4, 6]


@pytest.mark.parametrize(
    ("epochs", "rows", "steps"), [(1.0, 8, 2), (1.0, 9, 3), (2.5, 8, 5), (0.1, 8, 1), (0.3, 4, 1)]
)
def test_steps_are_as_many_as_the_epochs_take(tmp_path, epochs, rows, steps):
    page = tiny_farm.settings("sft", tmp_path, **SMALL | {"epochs": epochs, "optimizer.warmup_steps": 0})
    assert offline.steps_of(page, rows) == steps
