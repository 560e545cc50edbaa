"""The page and the plots that show an evaluation."""
