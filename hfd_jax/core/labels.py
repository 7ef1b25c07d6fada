"""The one label code that all modules share."""

IGNORE_LABEL = 255  # counts in no loss and no metric
