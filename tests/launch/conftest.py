"""What the tests of the launch scripts share."""

import fake_programs
import pytest


@pytest.fixture
def fakes(tmp_path):
    """An empty set of stand-ins, with a home folder of their own."""
    return fake_programs.Fakes(tmp_path / "fakes")
