"""Judge comparisons: tables, verdicts, scores and plots."""
