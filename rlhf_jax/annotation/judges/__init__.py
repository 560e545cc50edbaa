"""Judges: their YAML files, read and checked, and the requests that they make of questions."""
