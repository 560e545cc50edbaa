"""What takes minutes and is shown in part elsewhere runs when asked for: RLHF_JAX_WIDE=1."""

import os

import pytest

WIDE = os.environ.get("RLHF_JAX_WIDE") == "1"
wide = pytest.mark.skipif(not WIDE, reason="takes minutes; RLHF_JAX_WIDE=1 runs it")
