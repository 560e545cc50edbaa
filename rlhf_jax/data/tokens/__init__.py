"""Tokenizers: read, written and trained; ids with a meaning; text whose score is read."""
