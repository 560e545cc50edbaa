"""What a run would need on accelerators that are not here, read off its programs, compiled for them."""
