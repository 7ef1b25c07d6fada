"""Architectures, their base class and registry, pretrained weights, folding. No config, no losses."""
