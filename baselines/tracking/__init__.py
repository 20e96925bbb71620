"""Record comparisons in MLflow."""
