"""The label code shared by all modules."""

IGNORE_LABEL = 255  # excluded from every loss and metric
