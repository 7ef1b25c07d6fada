"""Scores of networks on a split, the building score, figures, speed of inference."""
