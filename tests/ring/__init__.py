"""Tests of layer 1: what the ring promises, on the kernel and in simulation."""
