"""The accelerator suite: what `tools.benchmark --suite=accelerator` measures on one card, part by part."""
