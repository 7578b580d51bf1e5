"""The small ontology of the tests. Read only."""

import pytest

from cisterna.scoring import gene_ontology
from terms import OBO


@pytest.fixture(scope="session")
def obo(tmp_path_factory):
    path = tmp_path_factory.mktemp("obo") / "go.obo"
    path.write_text(OBO)
    return path


@pytest.fixture(scope="session")
def go(obo):
    return gene_ontology.read(obo)
