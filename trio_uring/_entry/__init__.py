"""Layer 5, the ways in: what replaces names of Trio's and AnyIO's, and what a user starts. Imports every other layer."""
