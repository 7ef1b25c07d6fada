"""From a config to trained networks: validate, build, then `stages` trains teacher and students step by step."""
