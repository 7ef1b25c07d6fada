"""The description of a folder of rasters, dataset.json: its keys, the files it names, its splits and labels."""
