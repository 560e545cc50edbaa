"""Recorded AlpacaEval judgments, served again to the annotation layer."""
