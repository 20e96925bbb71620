"""Train a model, a step at a time: one file a recipe."""

from baselines.methods.recipes.base import Recipe, RecipePart, Step, training_step

__all__ = ["Recipe", "RecipePart", "Step", "training_step"]
