"""The cancellation suite on the backends of this project, and what its forms of the ring make possible besides."""
