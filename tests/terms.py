"""A small ontology: what tests of sets of terms are made of."""

# Both relations in all three namespaces, terms with two parents, a part_of that skips a level, one into another
# namespace, an obsolete term and alternative ids. Long terms have two lines; "; " ends a line of OBO.
TERMS = """
GO:0000001; name: function; namespace: molecular_function
GO:0000002; name: catalysis; namespace: molecular_function; is_a: GO:0000001 ! function
GO:0000003; name: binding; namespace: molecular_function; alt_id: GO:0000093; alt_id: GO:0000094
is_a: GO:0000001 ! function
GO:0000004; name: transfer; namespace: molecular_function; is_a: GO:0000002 ! catalysis
GO:0000005; name: transfer of phosphate; namespace: molecular_function; is_a: GO:0000004 ! transfer
relationship: part_of GO:0000003 ! binding; relationship: part_of GO:0000013 ! process of phosphate
GO:0000011; name: process; namespace: biological_process
GO:0000012; name: metabolism; namespace: biological_process; is_a: GO:0000011 ! process
GO:0000013; name: process of phosphate; namespace: biological_process; is_a: GO:0000012 ! metabolism
GO:0000014; name: signalling; namespace: biological_process; is_a: GO:0000011 ! process
relationship: regulates GO:0000012 ! metabolism
GO:0000015; name: cascade; namespace: biological_process; alt_id: GO:0000095; is_a: GO:0000013 ! process of phosphate
relationship: part_of GO:0000014 ! signalling; relationship: part_of GO:0000012 ! metabolism
GO:0000021; name: component; namespace: cellular_component
GO:0000022; name: organelle; namespace: cellular_component; is_a: GO:0000021 ! component
GO:0000023; name: membrane; namespace: cellular_component; is_a: GO:0000021 ! component
GO:0000024; name: membrane of organelle; namespace: cellular_component; is_a: GO:0000023 ! membrane
relationship: part_of GO:0000022 ! organelle
GO:0000025; name: pore; namespace: cellular_component; relationship: part_of GO:0000024 ! membrane of organelle
GO:0000081; name: obsolete thing; namespace: molecular_function; is_obsolete: true; replaced_by: GO:0000002
"""
STANZAS = TERMS.replace("\nGO:", "\n\n[Term]\nid: GO:").replace("; ", "\n")
OBO = f"""format-version: 1.2
data-version: releases/2026-01-01
ontology: go{STANZAS}
[Typedef]
id: part_of
name: part of
is_transitive: true
"""
ROOTS = {"GO:0000001", "GO:0000011", "GO:0000021"}
LIVE = [f"GO:{number:07}" for number in (*range(2, 6), *range(12, 16), *range(22, 26))]
ALTERNATIVES = {"GO:0000093": "GO:0000003", "GO:0000094": "GO:0000003", "GO:0000095": "GO:0000015"}
EVERYTHING = [*LIVE, *sorted(ROOTS), *ALTERNATIVES]
