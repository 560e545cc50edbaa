"""Whether what others have published shows in a study: values over seeds, ranks, and verdicts on claims."""
