"""Layer 2, the loop: Trio's I/O manager contract, the life of an operation, and what every operation needs. Imports the ring."""
