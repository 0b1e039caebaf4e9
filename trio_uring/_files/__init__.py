"""Layer 3, files, paths and pipes. Imports the loop and the ring."""
