"""How sequences reach a model: as residue tokens, or as features of an encoder."""
