import gc
import json
import shutil

import jax
import jax.numpy as jnp
import pytest
import toy_training as toy

from rlhf_jax.errors import UserError
from rlhf_jax.training.checkpoints.checkpoint import Checkpoints, chosen_checkpoint
from rlhf_jax.training.loop import state

# Reading broken files leaves unfinished work behind in Orbax, which complains when it is collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def collected():
    """Makes it complain in the test that caused it."""
    yield
    gc.collect()


CONFIG = {"steps": 9, "optimizer": {"learning_rate": 0.1, "name": "adamw"}, "data": {"digest": "abc"}}


def make_state(value=0.0):
    tx = toy.optimizer()
    made = state.create(toy.params(), tx, seed=3, extra={"kl_coef": 0.1})
    return made.replace(params=jax.tree.map(lambda x: x + value, made.params))


def save(folder, steps, scores=None, **settings):
    with Checkpoints(
        folder, config=CONFIG, best_metric="eval/x" if scores else "", **settings
    ) as checkpoints:
        for step in steps:
            if scores:
                checkpoints.record(step, {"eval/x": scores[step]})
            checkpoints.save(step, make_state(step))
    return there(folder)


def there(folder):
    return sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())


def restore(folder, config=CONFIG, **settings):
    with Checkpoints(folder, config=config, **settings) as checkpoints:
        return checkpoints.restore(state.abstract(make_state()))


def test_what_is_saved_comes_back(tmp_path):
    with Checkpoints(tmp_path, config=CONFIG) as checkpoints:
        assert checkpoints.restore(state.abstract(make_state())) is None
        assert checkpoints.latest_step() is None
        checkpoints.save(4, make_state(1.5), evaluated=True)
        checkpoints.save(4, make_state(99.0))  # there already: nothing happens
        assert checkpoints.latest_step() == 4
    found = restore(tmp_path)
    assert (found.step, found.evaluated) == (4, True)
    assert toy.same(found.state, make_state(1.5))
    assert type(found.state) is state.TrainState
    assert jnp.issubdtype(found.state.key.dtype, jax.dtypes.prng_key)


def test_partitioned_optimizer_state_comes_back(tmp_path):
    from rlhf_jax.training.optimizers.optimizer import partitioned

    tx = partitioned({"policy": toy.optimizer(), "value": toy.optimizer()})
    made = state.create({"policy": toy.params(), "value": toy.params()}, tx, seed=0)
    with Checkpoints(tmp_path, config={}) as checkpoints:
        checkpoints.save(1, made)
    with Checkpoints(tmp_path, config={}) as checkpoints:
        found = checkpoints.restore(state.abstract(made)).state
    assert jax.tree.structure(found) == jax.tree.structure(made)
    assert toy.same(found, made)


def test_a_save_in_the_background_does_not_see_later_steps(tmp_path):
    # The next step reuses the donated memory while the checkpoint is still being written.
    bump = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    tree = {f"w{i}": jax.device_put(jnp.zeros((500, 500)), jax.devices()[0]) for i in range(8)}
    like = state.abstract(tree)
    with Checkpoints(tmp_path, config={}) as checkpoints:
        checkpoints.save(1, tree)
        for _ in range(20):
            tree = bump(tree)
        jax.block_until_ready(tree)
        checkpoints.wait()
        found = checkpoints.restore(like).state
    assert all((x == 0).all() for x in toy.leaves(found))


def test_the_last_ones_stay(tmp_path):
    assert save(tmp_path / "two", range(1, 6)) == [4, 5]
    assert save(tmp_path / "one", range(1, 6), keep=1) == [5]


@pytest.mark.parametrize(
    ("mode", "scores", "best"),
    [
        ("max", [1.0, 5.0, 2.0, 3.0, 0.0], 1),
        ("min", [1.0, 0.5, 2.0, 3.0, 4.0], 1),
        ("max", [1.0, 5.0, 5.0, 3.0, 0.0], 2),  # of equals the later one
        ("min", [float("nan"), 7.0, float("inf"), 8.0, 9.0], 1),
        ("max", [float("nan")] * 5, None),
    ],
)
def test_the_best_one_stays_too(tmp_path, mode, scores, best):
    kept = save(tmp_path, range(5), scores, keep=1, best_mode=mode)
    assert kept == sorted({4} | ({best} - {None}))
    with Checkpoints(tmp_path, config=CONFIG, best_metric="eval/x", best_mode=mode, keep=1) as checkpoints:
        checkpoints.restore(state.abstract(make_state()))
        assert checkpoints.best_step() == best  # remembered over a restart
        found = checkpoints.restore_best(state.abstract(make_state()))
        if best is None:
            assert found is None
        else:
            assert toy.same(found.state, make_state(best))


@pytest.mark.parametrize(
    ("metric", "mode", "scores", "taken"),
    [
        ("eval/x", "max", [5.0, 1.0, 2.0], (0, "the best eval/x")),
        ("eval/x", "min", [5.0, 1.0, 2.0], (1, "the best eval/x")),
        ("eval/x", "min", [1.0, 1.0, 2.0], (1, "the best eval/x")),  # of equals the later one
        ("eval/x", "min", [float("nan"), 3.0, float("-inf")], (1, "the best eval/x")),
        ("eval/x", "max", [float("nan")] * 3, (2, "the last")),
        ("", "max", [5.0, 1.0, 2.0], (2, "the last")),
    ],
)
def test_a_workdir_stands_for_the_checkpoint_that_its_run_would_export(tmp_path, metric, mode, scores, taken):
    config = CONFIG | {"best_metric": metric, "best_mode": mode}
    with Checkpoints(tmp_path, config=config, best_metric=metric, best_mode=mode, keep=3) as checkpoints:
        for step, score in enumerate(scores):
            checkpoints.record(step, {"eval/x": score})
            checkpoints.save(step, {"w": jnp.ones(1)})
    assert chosen_checkpoint(tmp_path) == (tmp_path / f"checkpoints/{taken[0]}", taken[1])


@pytest.mark.parametrize(("best", "kept"), [(1, [1, 4]), (2, [1, 3, 4]), (9, [0, 1, 2, 3, 4])])
def test_several_of_the_best_stay(tmp_path, best, kept):
    assert save(tmp_path, range(5), [1.0, 5.0, 2.0, 3.0, 0.0], keep=1, keep_best=best) == kept


def test_record_tells_when_an_evaluation_is_the_best_so_far(tmp_path):
    with Checkpoints(tmp_path, config={}, best_metric="eval/x", best_mode="min") as checkpoints:
        said = [
            checkpoints.record(i, {"eval/x": x}) for i, x in enumerate([3.0, 4.0, 2.0, 2.0, float("nan")])
        ]
    assert said == [True, False, True, True, False]


def damage(path, how):
    if how == "delete":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if how == "cut" else b"")


@pytest.mark.usefixtures("collected")
def test_whatever_file_is_damaged_the_state_is_right_or_the_one_before_is_taken(tmp_path, capsys):
    save(tmp_path / "good", [2, 4])
    newest = tmp_path / "good/checkpoints/4"
    files = sorted(p.relative_to(newest) for p in newest.rglob("*") if p.is_file())
    fell_back = []
    for n, file in enumerate(files):
        how = ("delete", "cut", "empty")[n % 3]
        folder = tmp_path / str(n)
        shutil.copytree(tmp_path / "good", folder)
        damage(folder / "checkpoints/4" / file, how)
        found = restore(folder)
        assert toy.same(found.state, make_state(found.step)), f"{how} {file}"
        notice = capsys.readouterr().out
        assert ("notice: checkpoint" in notice) == (found.step == 2)
        if found.step == 2:
            fell_back.append(file)
            assert (folder / "checkpoints/4.damaged").is_dir()
            # The run goes on and saves step 4 again.
            save(folder, [4])
            assert restore(folder).step == 4
    assert {f.parts[0] for f in fell_back} == {"state", "meta"}


def test_a_kill_while_writing_leaves_only_a_temporary_folder(tmp_path):
    save(tmp_path, [2])
    half = tmp_path / "checkpoints/4.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints/2/state", half / "state")
    assert restore(tmp_path).step == 2
    assert not half.exists()


@pytest.mark.usefixtures("collected")
def test_none_readable(tmp_path):
    save(tmp_path, [2, 4])
    for manifest in tmp_path.glob("checkpoints/*/state/manifest.ocdbt"):
        manifest.unlink()
    with pytest.raises(UserError, match=r"none of 2 checkpoints can be read \(.+\); delete the folder") as e:
        restore(tmp_path)
    assert "\n" not in str(e.value)
    assert there(tmp_path) == [2, 4]  # nothing was moved


def test_a_changed_config_is_refused_by_name(tmp_path):
    save(tmp_path, [2])
    changed = {
        "steps": 9,
        "optimizer": {"learning_rate": 0.2, "name": "adamw"},
        "data": {"digest": "xyz"},
        "beta": 1,
    }
    with pytest.raises(UserError) as e:
        restore(tmp_path, changed)
    text = str(e.value)
    assert "beta was 'absent', is 1; data.digest was 'abc', is 'xyz'" in text
    assert "optimizer.learning_rate was 0.1, is 0.2" in text
    assert "steps" not in text.split("config:")[1].split("use another")[0]
    assert f"use another --workdir or delete {tmp_path}" in text
    # A page has all fields of its version.
    assert "written by another version, or a run with another config" in text
    with pytest.raises(UserError, match="2: written by a run with another config: steps was 9, is 8"):
        restore(tmp_path, CONFIG | {"steps": 8})


@pytest.mark.usefixtures("collected")
def test_a_state_of_other_parts_is_of_another_version_and_no_damage(tmp_path):
    with Checkpoints(tmp_path, config={}) as checkpoints:
        checkpoints.save(1, {"opt_state": {"inner_states": {"policy": jnp.ones(3)}}})
        checkpoints.save(2, {"opt_state": {"policy": jnp.ones(3)}})
    with (
        Checkpoints(tmp_path, config={}) as checkpoints,
        pytest.raises(
            UserError, match=r"2: written by another version, whose state has other parts; end the run"
        ),
    ):
        checkpoints.restore({"opt_state": {"inner_states": {"policy": jnp.zeros(3)}}})
    assert there(tmp_path) == [1, 2]  # nothing was moved


def test_what_changes_no_result_may_change(tmp_path):
    save(tmp_path, [2])
    assert restore(tmp_path, {**CONFIG, "log_every": 7, "mesh": {"data": 8, "fsdp": 1}}).step == 2
    with pytest.raises(UserError, match="steps was 9, is 50"):
        restore(tmp_path, {**CONFIG, "steps": 50})
    assert restore(tmp_path, {**CONFIG, "steps": 50}, may_change=("steps",)).step == 2
    assert restore(tmp_path, {**CONFIG, "data": {"digest": "xyz"}}, may_change=("data",)).step == 2


def test_tuples_and_numpy_free_values_survive_json(tmp_path):
    with Checkpoints(tmp_path, config={"sizes": (1, 2), "name": None}) as checkpoints:
        checkpoints.save(1, make_state())
    assert restore(tmp_path, {"sizes": (1, 2), "name": None}).step == 1


@pytest.mark.usefixtures("collected")
def test_another_model_does_not_fit(tmp_path):
    with Checkpoints(tmp_path, config={}) as checkpoints:
        checkpoints.save(1, make_state())
    wider = state.abstract(state.create(toy.params(16), toy.optimizer(), seed=0, extra={"kl_coef": 0.1}))
    with (
        Checkpoints(tmp_path, config={}) as checkpoints,
        pytest.raises(UserError, match="none of 1 checkpoints"),
    ):
        checkpoints.restore(wider)


def test_a_failed_write_is_reported_in_one_line(tmp_path, monkeypatch):
    with Checkpoints(tmp_path, config={}) as checkpoints:
        checkpoints.save(1, make_state())
        checkpoints.wait()

        def full():
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpoints._manager, "wait_until_finished", full)
        with pytest.raises(
            UserError, match=r"checkpoint 1 could not be written: No space left.*same command again"
        ):
            checkpoints.wait()
        monkeypatch.undo()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot be written"):
        Checkpoints(tmp_path / "file", config={})


def test_meta_is_plain_json(tmp_path):
    save(tmp_path, [2], {2: 0.5})
    meta = json.loads((tmp_path / "checkpoints/2/meta/metadata").read_text())
    assert meta["config"]["optimizer.learning_rate"] == 0.1
    assert meta["scores"] == {"2": 0.5}
