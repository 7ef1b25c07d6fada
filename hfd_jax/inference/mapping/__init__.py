"""Large georeferenced scenes to maps and polygons."""
