"""The tests of the environment diagnosis: _availability and _doctor."""
