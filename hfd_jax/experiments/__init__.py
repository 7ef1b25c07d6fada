"""Sweeps over configs and seeds, their statistics and tables, and the HTML report."""
