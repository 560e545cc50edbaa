"""The kinds of judgments that can be asked for: pairs, rankings, ratings, completions and head-to-head comparisons."""
