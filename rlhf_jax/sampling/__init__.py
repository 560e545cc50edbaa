"""The decode engine: prefill, decode loop, sampling rules."""
