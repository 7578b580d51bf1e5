"""What terms imply and weigh, and files of ontologies and weights."""

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cisterna.errors import UserError
from cisterna.scoring import gene_ontology
from terms import EVERYTHING, OBO, ROOTS


def test_a_term_implies_its_ancestors_over_both_relations_and_no_root(go):
    assert go.propagate(["GO:0000005"]) == {"GO:0000005", "GO:0000004", "GO:0000002", "GO:0000003"}
    assert go.propagate(["GO:0000015"]) == {"GO:0000015", "GO:0000013", "GO:0000012", "GO:0000014"}
    assert go.propagate(["GO:0000025"]) == {"GO:0000025", "GO:0000024", "GO:0000023", "GO:0000022"}
    assert go.propagate(ROOTS) == set()


def test_relations_into_another_namespace_and_other_relations_are_not_followed(go):
    assert "GO:0000013" not in go.propagate(["GO:0000005"])
    assert go.propagate(["GO:0000014"]) == {"GO:0000014"}


def test_an_alternative_id_is_its_term_and_an_obsolete_one_is_none(go):
    assert go.terms("GO:0000093") == ("GO:0000003",)
    assert go.terms("GO:0000081") == ()
    assert go.obsolete == {"GO:0000081"}
    assert go.propagate(["GO:0000081", "GO:0099999"]) == set()


def test_the_most_specific_terms_imply_the_whole_set(go):
    assert go.specific(["GO:0000002", "GO:0000005", "GO:0000001", "GO:0000093"]) == ["GO:0000005"]
    assert go.specific(["GO:0000014", "GO:0000022", "GO:0000095"]) == ["GO:0000015", "GO:0000022"]


@given(st.sets(st.sampled_from(EVERYTHING)))
def test_the_most_specific_terms_of_any_set_lose_nothing(go, terms):
    specific = go.specific(terms)
    assert go.propagate(specific) == go.propagate(terms)
    assert all(go.propagate(set(specific) - {term}) < go.propagate(terms) for term in specific)


def test_the_same_ontology_comes_back_from_its_file_byte_for_byte(go, tmp_path):
    for number, given_ in enumerate((go, go.weighted({"GO:0000005": 2.5}))):
        path = tmp_path / f"{number}.json"
        given_.write(path)
        assert gene_ontology.load(path) == given_
        gene_ontology.load(path).write(tmp_path / "again.json")
        assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_information_accretion_is_the_surprise_of_a_term_given_its_parents(go):
    proteins = [["GO:0000005"], ["GO:0000004"], ["GO:0000004", "GO:0000003"], ["GO:0000002"], ["GO:0000022"]]
    found = gene_ontology.information_accretion(proteins, go)
    assert found["GO:0000002"] == 0.0  # all four with a function have it
    assert found["GO:0000004"] == pytest.approx(math.log2(4 / 3))
    assert found["GO:0000003"] == pytest.approx(1.0)  # two of four
    assert found["GO:0000005"] == pytest.approx(1.0)  # one of the two with both parents
    assert found["GO:0000022"] == 0.0
    assert set(found) == {"GO:0000002", "GO:0000003", "GO:0000004", "GO:0000005", "GO:0000022"}


@given(st.lists(st.lists(st.sampled_from(EVERYTHING), min_size=1), min_size=1, max_size=20))
def test_information_accretion_is_finite_and_never_negative(go, proteins):
    found = gene_ontology.information_accretion(proteins, go)
    assert all(math.isfinite(bits) and bits >= 0 for bits in found.values())
    assert not found.keys() & ROOTS


def test_weights_are_read_in_the_format_of_cafa(go, tmp_path):
    path = tmp_path / "ia.tsv"
    path.write_text("GO:0000002\t0.5\nGO:0000001\t0.0\n\nGO:0000003\tinf\nGO:0999999\t2\n")
    expected = {"GO:0000002": 0.5, "GO:0000001": 0.0, "GO:0000003": 0.0, "GO:0999999": 2.0}
    assert gene_ontology.read_weights(path, go) == expected
    path.write_text(path.read_text(), encoding="utf-8-sig")  # with a byte-order mark
    assert gene_ontology.read_weights(path, go) == expected


def test_weights_in_another_encoding_are_refused_with_their_line(go, tmp_path):
    path = tmp_path / "ia.tsv"
    path.write_bytes("GO:0000002\t0.5\n# Müller\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"ia\.tsv, line 2: .*not UTF-8"):
        gene_ontology.read_weights(path, go)
    path.write_text("GO:0000002\t0.5\n", encoding="utf-16")
    with pytest.raises(UserError, match=r"ia\.tsv, line 1: .*UTF-16"):
        gene_ontology.read_weights(path, go)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("GO:0000002 0.5\n", r"ia.tsv:1: 'GO:0000002 0.5' is not a GO term, a tab"),
        ("GO:0000002\t0.5\nGO:0000003\tmuch\n", r"ia.tsv:2: .*Correct the line"),
        ("GO:0000002\t-0.5\n", r"ia.tsv:1: .*>= 0"),
        ("GO:0000002\tnan\n", r"ia.tsv:1: "),
        ("term\tia\n", r"ia.tsv:1: "),
        ("GO:0000002\t0.5\nGO:0000002\t0.5\n", r"ia.tsv:2: GO:0000002"),
        ("GO:0999999\t0.5\n", r"none of its 1 terms is in the ontology"),
        ("", r"none of its 0 terms"),
    ],
)
def test_weights_that_cannot_be_meant_are_refused_with_their_line(go, tmp_path, text, message):
    path = tmp_path / "ia.tsv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        gene_ontology.read_weights(path, go)


def test_files_that_are_missing_are_refused(go, tmp_path):
    with pytest.raises(UserError, match=r"no\.tsv"):
        gene_ontology.read_weights(tmp_path / "no.tsv", go)
    with pytest.raises(UserError, match=r"go\.obo"):
        gene_ontology.read(tmp_path / "go.obo")


def test_qualifiers_and_comments_behind_a_parent_are_not_part_of_its_id(tmp_path):
    path = tmp_path / "go.obo"
    path.write_text(OBO.replace("is_a: GO:0000002 !", 'is_a: GO:0000002 {source="x", is_inferred="true"} !'))
    assert "GO:0000002" in gene_ontology.read(path).propagate(["GO:0000004"])


def test_a_file_with_other_line_ends_a_byte_order_mark_or_one_namespace_for_all_says_the_same(go, tmp_path):
    path = tmp_path / "go.obo"
    for text in (OBO.replace("\n", "\r\n"), "\ufeff" + OBO):
        path.write_bytes(text.encode())
        assert gene_ontology.read(path) == go
    one = OBO.replace("namespace: molecular_function\n", "").replace(
        "ontology: go", "default-namespace: molecular_function", 1
    )
    path.write_text(one)
    assert gene_ontology.read(path) == go


@pytest.mark.parametrize("missing", ["GO:0000002", "GO:0000003"])
def test_a_relation_to_a_term_that_the_file_does_not_have_is_refused_with_the_term(tmp_path, missing):
    path = tmp_path / "go.obo"
    path.write_text(re.sub(rf"\[Term\]\nid: {missing}\n.*?\n\n", "", OBO, count=1, flags=re.DOTALL))
    with pytest.raises(UserError, match=f"relations lead to terms that the file does not have.*{missing}"):
        gene_ontology.read(path)


def test_a_compressed_file_is_read(go, tmp_path):
    import gzip

    path = tmp_path / "go.obo.gz"
    path.write_bytes(gzip.compress(OBO.encode()))
    assert gene_ontology.read(path) == go


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no term with a namespace"),
        ("protein,GO\np1,GO:0000001\n", "not readable as OBO|has no term"),
        (OBO.replace("namespace: ", "aspect: "), "has no term with a namespace"),
        (OBO.replace("is_a: GO:0000001 ! function", "is_a: GO:0000005 ! loop", 1), "its own ancestor"),
        (OBO.replace("relationship: part_of GO:0000003 ! binding", "relationship: part_of"), "not readable as OBO"),
    ],
    ids=["empty", "a table", "no namespaces", "a cycle", "half a relation"],
)
def test_a_file_that_is_no_ontology_is_refused(tmp_path, text, message):
    path = tmp_path / "go.obo"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(str(path)) + f".*({message})"):
        gene_ontology.read(path)


def test_a_broken_file_of_terms_is_refused(go, tmp_path):
    path = tmp_path / gene_ontology.FILE
    with pytest.raises(UserError, match="no such file"):
        gene_ontology.load(path)
    go.write(path)
    for content in (path.read_text()[:-20], "[]", json.dumps({"version": "1"})):
        path.write_text(content)
        with pytest.raises(UserError, match="not the terms of an ontology"):
            gene_ontology.load(path)
