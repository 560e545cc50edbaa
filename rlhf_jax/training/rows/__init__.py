"""Rows that only some methods train on."""
