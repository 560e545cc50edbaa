"""Processes that tests start do without torch, as users do; transformers loads it where it can, for two seconds."""

import sys

sys.modules["torch"] = None
