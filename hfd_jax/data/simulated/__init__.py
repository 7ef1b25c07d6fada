"""The parts of the simulator: regions, the ground, and how radar and camera see it."""
