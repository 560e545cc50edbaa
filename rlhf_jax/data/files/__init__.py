"""Table files -> rows: formats, folders, datasets, and how rows are held out."""
