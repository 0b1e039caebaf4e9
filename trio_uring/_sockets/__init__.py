"""Layer 3, sockets. Imports the loop and the ring."""
