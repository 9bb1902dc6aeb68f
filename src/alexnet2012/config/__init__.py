"""Settings: their schema, their defaults, how they are composed and checked."""
