"""Raw files to a prepared data set to batches: readers, checks, the builder, the pipeline, the simulator."""
