"""Layer 4, looking at a run. Imports the loop and the ring."""
