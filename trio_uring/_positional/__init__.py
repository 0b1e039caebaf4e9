"""Layer 3, the functions that only this package has: positional transfers, batches, splices. Imports the loop and the ring."""
