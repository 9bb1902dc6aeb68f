"""Settings: schema, roles, composition with Hydra, and validation."""
