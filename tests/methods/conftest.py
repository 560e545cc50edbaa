"""What the tests of the methods share."""

import pytest
import tiny_words


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    """The models and the tokenizer of the world of sixteen words. Tests read them and write elsewhere."""
    return tiny_words.build(tmp_path_factory.mktemp("words"))
