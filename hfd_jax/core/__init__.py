"""What everything else stands on: errors, losses, devices, checkpoints, logs, the workdir."""
