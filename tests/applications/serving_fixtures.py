"""A pytest plugin: certificates, and a directory of files to serve."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme
from material import SIZES, Certificates, content


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    directory = tmp_path_factory.mktemp("certificates")
    ca = trustme.CA()
    leaf = ca.issue_cert("localhost", "127.0.0.1")
    found = Certificates(directory / "ca.pem", directory / "chain.pem", directory / "key.pem")
    ca.cert_pem.write_to_path(found.ca)
    leaf.private_key_pem.write_to_path(found.key)
    for blob in leaf.cert_chain_pems:
        blob.write_to_path(found.chain, append=True)
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of files."""
    directory = tmp_path_factory.mktemp("served") / "site"
    directory.mkdir()
    for name in SIZES:
        (directory / name).write_bytes(content(name))
    return directory
