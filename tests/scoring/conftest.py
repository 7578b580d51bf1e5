"""The small ontology of the tests, and rewards as TRL calls them. Read only."""

import pytest
from outputs import SPACE

from cisterna.scoring import gene_ontology, rewards
from cisterna.sequences import tokenization
from terms import OBO


@pytest.fixture(scope="session")
def obo(tmp_path_factory):
    path = tmp_path_factory.mktemp("obo") / "go.obo"
    path.write_text(OBO)
    return path


@pytest.fixture(scope="session")
def go(obo):
    return gene_ontology.read(obo)


@pytest.fixture(scope="module")
def tokenizer(base):
    return tokenization.load(base)


@pytest.fixture
def scores(tokenizer):
    """One row a reward, as TRL calls them: with every column of the data set, the token ids and its text of them."""

    def score(weights, completions, golds, space=SPACE, **limits):
        functions, _ = rewards.trl_functions(weights, space, tokenizer, **limits)
        ids = [tokenizer(text + tokenizer.eos_token, add_special_tokens=False)["input_ids"] for text in completions]
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [
            function(prompts=["?"] * len(golds), completions=texts, completion_ids=ids, answer=golds)
            for function in functions
        ]

    return score
