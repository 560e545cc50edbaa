"""Tables of methods: ours, others' published rows, and the files of AlpacaEval."""
