"""A trained network at work: restore, predict from Python, map large scenes, export."""
