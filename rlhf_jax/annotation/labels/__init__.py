"""Label files: rows made of verdicts, files written atomically, expansion into pairs and scored responses."""
