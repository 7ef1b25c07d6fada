"""Distillation methods, one file each; `hfd.py` is the project's own."""
