"""Residue tokens: one token a residue, apart from text and from the other modalities, in any tokenizer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cisterna.errors import UserError
from cisterna.sequences import tokenization
from tiny import TEXTS

SEQUENCES = st.sampled_from(sorted(tokenization.ALPHABETS)).flatmap(
    lambda modality: st.tuples(st.just(modality), st.text(tokenization.ALPHABETS[modality], max_size=40))
)
PLAIN = st.text(st.characters(blacklist_characters="<>|", blacklist_categories=("Cs",)), max_size=30)


@pytest.fixture(scope="module")
def tokenizer(base):
    return tokenization.load(base)


def tagged(modality, sequence):
    return f"<{modality}>{sequence}</{modality}>"


def encode(tokenizer, prompt):
    """Ids of a prompt, its stretches of residues as tokens."""
    return tokenizer(tokenization.render_prompts(tokenizer, [prompt])[0], add_special_tokens=False)["input_ids"]


@given(SEQUENCES, PLAIN, PLAIN)
def test_a_residue_is_one_token_whatever_text_stands_around_it(tokenizer, piece, before, after):
    modality, sequence = piece
    residues = [f"<|{modality}:{letter}|>" for letter in sequence]
    written = tokenizer.convert_ids_to_tokens(encode(tokenizer, before + tagged(*piece) + after))
    start = written.index(f"<{modality}>")
    assert written[start : start + len(sequence) + 2] == [f"<{modality}>", *residues, f"</{modality}>"]
    assert tokenizer.decode(encode(tokenizer, before)) == before
    assert not any(token.startswith("<|") for token in written[:start] + written[start + len(sequence) + 2 :])


@given(st.lists(st.tuples(PLAIN, SEQUENCES), max_size=4), PLAIN)
def test_expand_and_collapse_are_a_round_trip_also_through_ids(tokenizer, pieces, end):
    text = "".join(before + tagged(*piece) for before, piece in pieces) + end
    assert tokenization.collapse(tokenization.expand(text)) == text
    assert tokenization.collapse(tokenizer.decode(encode(tokenizer, text))) == text


@given(SEQUENCES)
def test_the_table_of_residues_equals_the_tokenizers_own_encoding(tokenizer, piece):
    modality, sequence = piece
    ids = tokenization.residue_ids(tokenization.residue_table(tokenizer, modality), sequence.encode(), modality)
    assert ids.dtype == np.uint32
    assert ids.tolist() == encode(tokenizer, tagged(modality, sequence))[1:-1]


@pytest.mark.parametrize(
    ("modality", "wrong"), [("dna", "U"), ("rna", "T"), ("protein", "-"), ("dna", "a"), ("rna", " ")]
)
def test_letters_outside_the_alphabet_are_named(tokenizer, modality, wrong):
    letters = tokenization.ALPHABETS[modality]
    with pytest.raises(UserError, match=letters):
        tokenization.expand(f"text {tagged(modality, letters + wrong)}")
    with pytest.raises(UserError, match=f"{wrong!r} at position {len(letters) + 1} .*{letters}"):
        tokenization.residue_ids(tokenization.residue_table(tokenizer, modality), (letters + wrong).encode(), modality)


def test_residue_tokens_without_their_tags_are_not_letters():
    text = "A <|dna:A|> <dna><|dna:C|></dna> <dna><|rna:G|></dna> <rna>G</rna>"
    assert tokenization.collapse(text) == text.replace("<dna><|dna:C|></dna>", "<dna>C</dna>")


def test_what_a_model_wrote_ends_at_the_end_of_text_and_spells_control_tokens_out(tokenizer):
    ids = tokenizer("<think>x<|pad|></think>Answer: <rna><|rna:A|></rna>", add_special_tokens=False)["input_ids"]
    text = "<think>x<|pad|></think>Answer: <rna>A</rna>"
    assert tokenization.decode_completion(tokenizer, ids) == (text, False)
    end = [tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.pad_token_id]
    assert tokenization.decode_completion(tokenizer, ids + end) == (text, True)
    assert tokenization.decode_completion(tokenizer, []) == ("", False)


def test_only_what_stands_between_matching_tags_is_a_sequence():
    for text in ("ACGT", "<dna>ACGT", "<dna>ACGU</rna>", "<DNA>acgt</DNA>"):
        assert tokenization.expand(text) == text


def test_every_residue_of_every_modality_has_an_id_of_its_own(tokenizer):
    ids = [tokenizer.convert_tokens_to_ids(token) for token in tokenization.added_tokens()]
    assert len(set(ids)) == len(ids)
    assert tokenizer.unk_token_id not in ids
    assert len({tokenizer.convert_tokens_to_ids(f"<|{modality}:A|>") for modality in tokenization.ALPHABETS}) == 3


def test_digits_of_a_position_are_separate_tokens(tokenizer):
    assert tokenizer.convert_ids_to_tokens(encode(tokenizer, "position 1234"))[-4:] == list("1234")


def test_building_twice_gives_identical_files(tmp_path):
    for name in ("a", "b"):
        tokenization.build(400, TEXTS).save_pretrained(tmp_path / name)
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("a", "b"))
    assert "tokenizer.json" in first
    assert first == second


def test_the_vocabulary_is_the_size_asked_for_and_the_residue_tokens():
    assert len(tokenization.build(400, TEXTS)) == 400 + len(tokenization.added_tokens())


def test_a_text_file_that_is_not_there_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match=r"absent\.txt"):
        tokenization.build(400, [tmp_path / "absent.txt"])


def test_a_folder_without_a_tokenizer_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="no tokenizer"):
        tokenization.load(tmp_path)


def test_a_prompt_stands_as_it_is_or_goes_through_the_chat_template(base):
    prompt = "Spliced? <rna>GU</rna>\n"
    expanded = "Spliced? <rna><|rna:G|><|rna:U|></rna>\n"
    tokenizer = tokenization.load(base)
    assert tokenization.render_prompts(tokenizer, [prompt])[0] == expanded
    tokenizer.chat_template = (
        "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert tokenization.render_prompts(tokenizer, [prompt])[0] == f"[user]{expanded}[assistant]"


def test_the_same_tokens_work_in_a_tokenizer_of_someone_else(tmp_path):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    # Another family than ours: WordPiece, which lower-cases, splits at punctuation and has an unknown token.
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.train(
        [str(TEXTS[0])], trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False)
    )
    other = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")
    known = len(other)
    other.add_tokens(tokenization.added_tokens())
    other.save_pretrained(tmp_path)
    other = tokenization.load(tmp_path)
    assert len(other) == known + len(tokenization.added_tokens())
    for modality, letters in tokenization.ALPHABETS.items():
        ids = encode(other, f"the gene{tagged(modality, letters)}codes")
        table = tokenization.residue_table(other, modality)
        residues = tokenization.residue_ids(table, letters.encode(), modality).tolist()
        opening, closing = other.convert_tokens_to_ids([f"<{modality}>", f"</{modality}>"])
        assert ids[ids.index(opening) : ids.index(closing) + 1] == [opening, *residues, closing]
