"""Layer 3, shards: several loops that work together, each on a processor of its own."""
