"""The HTML report: one self-contained page about finished or unfinished runs and their networks' results on a split."""
