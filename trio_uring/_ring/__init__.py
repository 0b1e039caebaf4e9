"""Layer 1, the ring. Knows liburing, by way of the shim, and nothing of Trio."""
