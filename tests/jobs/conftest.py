"""What the tests of the jobs share."""

import pytest
import tiny_farm


@pytest.fixture(scope="session")
def farm(tmp_path_factory):
    """The inputs of every job. Tests read it and write elsewhere."""
    return tiny_farm.build(tmp_path_factory.mktemp("farm"))


@pytest.fixture(scope="session", autouse=True)
def no_process_left():
    """A test that failed may have left processes running."""
    yield
    for process in tiny_farm.STARTED:
        if process.poll() is None:
            process.kill()
            process.wait()
