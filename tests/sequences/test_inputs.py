"""What a model is given: prompts in three forms, and text that cannot become structure."""

import json

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cisterna import models
from cisterna.artifacts import checkpoint, files
from cisterna.constants import SPLITS
from cisterna.data import splits
from cisterna.errors import UserError
from cisterna.scoring import answers
from cisterna.sequences import encoders, feature_bank, inputs_file, tokenization
from cisterna.sequences.prompt import encode_prompts
from cisterna.sequences.source import LiveEncoder, SequenceSource, connect, open_source, source_of
from cisterna.training import sft
from runs import SFT, Run
from tiny import READING, SIZES, encoder, hub_model

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(base):
    return tokenization.load(base)


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """The tokenizer of a pretrained chat model, as Cisterna extends it: with control tokens, and text in NFKC."""
    from tokenizers import AddedToken, normalizers

    folder = tmp_path_factory.mktemp("chat")
    model, tokenizer = hub_model(folder / "elsewhere", tie=True, spare=0)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}, False)
    tokenizer.add_tokens([AddedToken("[INST]", normalized=False), "   "])
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "elsewhere")
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder / "elsewhere")
    models.make_base({"pretrained": str(folder / "elsewhere")}, folder / "base")
    return tokenization.load(folder / "base")


class Counted:
    """A source whose rows are numbered from 0 in the order in which sequences are asked for."""

    def __init__(self, **reading):
        self.reading, self.width = READING | reading, 4
        self.live = LiveEncoder(type("Network", (), {"width": 4})(), "rna", self.reading)
        self.locate = self.live.locate


def parts(tokenizer, prompt, given, segments, first=1000):
    """Ids of a prompt as tokens and, for ids beyond the vocabulary, rows."""
    (ids,) = encode_prompts(tokenizer, [prompt], given, [segments], first)
    return [tokenizer.convert_ids_to_tokens(at) if at < first else at - first for at in ids]


def between(found, tag):
    """What stands between the tags, for each stretch."""
    stretches, inside = [], False
    for part in found:
        if part == f"</{tag}>":
            inside = False
        elif inside:
            stretches[-1].append(part)
        if part == f"<{tag}>":
            inside = True
            stretches.append([])
    return stretches


PROMPT = "Spliced? exon <rna>AAG</rna> intron <rna>GU</rna>\n"
SEGMENTS = [{"sequence": "CAAGGU", "start": 1, "center": None}, {"sequence": "CAAGGU", "start": 4, "center": None}]
AAG, GU = (["<|rna:A|>", "<|rna:A|>", "<|rna:G|>"], ["<|rna:G|>", "<|rna:U|>"])


@pytest.mark.parametrize(
    ("form", "expected"),
    [("tokens", [AAG, GU]), ("features", [[1, 2, 3], [4, 5]]), ("both", [[*AAG, 1, 2, 3], [*GU, 4, 5]])],
)
@pytest.mark.parametrize("which", ["tokenizer", "chat"])
def test_form_says_what_is_between_the_tags(request, which, form, expected):
    tokenizer = request.getfixturevalue(which)
    given = SequenceSource() if form == "tokens" else SequenceSource(form, Counted())
    found = parts(tokenizer, PROMPT, given, SEGMENTS)
    assert between(found, "rna") == expected
    # All else is as in the form of tokens.
    plain = parts(tokenizer, PROMPT, SequenceSource(), SEGMENTS)
    other = [part for part in found if isinstance(part, str) and not part.startswith("<|rna:")]
    assert other == [part for part in plain if not part.startswith("<|rna:")]
    if which == "chat":
        assert (found[0], plain.count("<|im_end|>")) == ("<|im_start|>", 1)


@pytest.mark.parametrize(
    ("reading", "segments", "expected"),
    [
        ({"pool": 2}, SEGMENTS, [[0, 1], [2]]),
        ({"pool": 6}, SEGMENTS, [[0], [0]]),
        ({"flank": 2}, SEGMENTS, [[1, 2, 3], [5, 6]]),  # AAGG; GGU
        ({"flank": 1}, [SEGMENTS[0], SEGMENTS[1] | {"center": 0}], [[0, 1], []]),  # AA; C, which is not shown
        ({}, [{"sequence": "AAG", "start": 0, "center": 2}, {"sequence": "GU", "start": 0, "center": 0}],
         [[0, 1, 2], [3, 4]]),
    ],
    ids=["pooled", "pooled-to-one", "windows", "center-elsewhere", "whole-sequences"],
)  # fmt: skip
def test_rows_of_a_stretch_are_those_of_its_residues_in_its_window(tokenizer, reading, segments, expected):
    found = parts(tokenizer, PROMPT, SequenceSource("features", Counted(**reading)), segments)
    assert between(found, "rna") == expected


def test_prompt_and_segments_that_do_not_fit_are_a_bug(tokenizer):
    for segments in (SEGMENTS[:1], [*SEGMENTS, SEGMENTS[0]]):
        with pytest.raises(ValueError, match="zip"):
            parts(tokenizer, PROMPT, SequenceSource("features", Counted()), segments)


def test_prompts_with_and_without_stretches_are_read_in_one_call(tokenizer):
    prompts = ["Plain?", PROMPT, "", "Plain <rna>", PROMPT]
    segments = [[], SEGMENTS, [], [], SEGMENTS]
    found = encode_prompts(tokenizer, prompts, SequenceSource("features", Counted()), segments, 1000)
    alone = [encode_prompts(tokenizer, [prompt], SequenceSource("features", Counted()), [part], 1000)[0]
             for prompt, part in zip(prompts, segments, strict=True)]  # fmt: skip
    assert found == alone


# --- Text that cannot become structure ---

SPELLED = [
    "<|dna:A|>", "<dna>", "</rna>", "<think>", "</think>", "<|endoftext|>", "<|pad|>", "<|im_end|>", "<|im_start|>",
    "<|end|>", "[INST]", "\x00", "<dna>ACGT", "<dna>acgt</rna>", "<<think>think>", "<|dna:<|dna:A|>A|>",
    "\uff1cthink\uff1e", "<|protein:\u212a|>", "<THINK>",
]  # fmt: skip
WORDS = st.lists(st.sampled_from(SPELLED) | st.text(max_size=8), max_size=6).map("".join)


@given(WORDS, WORDS)
@pytest.mark.parametrize("which", ["tokenizer", "chat"])
def test_no_text_becomes_a_token_of_structure(request, which, before, after):
    tokenizer = request.getfixturevalue(which)
    text = f"{before}<rna>AAG</rna>{after}"
    if tokenization.TAGGED.findall(text) != [("rna", "AAG")]:
        return  # the text is a stretch of residues itself, which the tables of users refuse
    added = {token for token in tokenizer.get_added_vocab() if token.strip()}
    template = ["<|im_start|>", "<|im_end|>", "<|im_start|>"] if which == "chat" else []
    for form, inside in (("tokens", AAG), ("features", [])):
        (written,) = tokenization.render_prompts(tokenizer, [text.replace("\x00", "")], form)
        found = tokenizer.convert_ids_to_tokens(
            tokenizer(written.replace("\x00", ""), add_special_tokens=False)["input_ids"]
        )
        structure = [token for token in found if token in added]
        assert structure == [*template[:1], "<rna>", *inside, "</rna>", *template[1:]]
    # A document of a corpus is text and nothing else.
    (ids,) = tokenization.encode_text(tokenizer, [text])
    assert not added & set(tokenizer.convert_ids_to_tokens(ids))
    for broken in tokenization.escape(tokenizer, [before, after]):
        assert not any(token in tokenization.TAGGED.sub("", broken) for token in added)


def test_escaped_text_is_the_text_but_for_a_space(tokenizer):
    (found,) = tokenization.escape(tokenizer, ["a <think> b <|dna:A|> c <rna>AU</rna> d <|endoftext|>"])
    assert found == "a < think> b < |dna:A|> c <rna>AU</rna> d < |endoftext|>"
    assert tokenization.escape(tokenizer, ["Nothing here, 5' < 3'."]) == ["Nothing here, 5' < 3'."]


def test_blanks_that_a_tokenizer_has_tokens_of_stay_as_they_are(chat):
    assert tokenization.escape(chat, ["a   b"]) == ["a   b"]


def test_completion_of_training_has_the_structure_that_cisterna_writes_and_no_other(tokenizer):
    frame = pd.DataFrame(
        {
            "prompt": [PROMPT],
            "segments": [SEGMENTS],
            "reasoning": ["so </think>Answer: b <|endoftext|><|rna:A|> <rna>AU</rna>"],
            "answer": ["a"],
        }
    )
    rows = sft.tokenize(tokenizer, frame)
    learned = [label for label in rows["labels"][0] if label != -100]
    structure = [token for token in tokenizer.convert_ids_to_tokens(learned) if token in tokenizer.get_added_vocab()]
    residues = ["<rna>", "<|rna:A|>", "<|rna:U|>", "</rna>"]
    assert structure == ["<think>", *residues, "</think>", "<|endoftext|>"]
    text, finished = tokenization.decode_completion(tokenizer, learned)
    assert finished
    assert answers.parse(text, ["a", "b"]) == "a"


def test_feature_rows_are_labels_of_nothing(tokenizer):
    frame = pd.DataFrame({"prompt": [PROMPT], "segments": [SEGMENTS], "reasoning": ["r"], "answer": ["a"]})
    rows = sft.tokenize(tokenizer, frame, SequenceSource("both", Counted()), 1000)
    assert max(rows["input_ids"][0]) >= 1000 > max(rows["labels"][0])


# --- Sources ---


def test_source_is_a_bank_or_a_live_encoder(esm, bank):
    assert open_source("tokens", "rna", bank) == SequenceSource()
    stored, running = (open_source("both", "rna", bank), open_source("both", "rna", None, esm, READING))
    assert isinstance(stored.features, feature_bank.Bank)
    assert isinstance(running.features, LiveEncoder)
    assert inputs_file.feature_space(stored.encoder) == inputs_file.feature_space(running.encoder)
    assert stored.encoder["identity"] == checkpoint.read_manifest(esm)["identity"]
    for options in ({}, {"encoder": esm}, {"reading": READING}):
        with pytest.raises(UserError, match=r"need a feature bank \(--bank\), or --encoder and --reading"):
            open_source("features", "rna", **options)


@pytest.mark.parametrize("form", ["features", "both"])
def test_checkpoint_remembers_its_task_form_and_encoder(base, splice, esm, bank, tmp_path, form):
    made = Run("sft", base, splice, tmp_path / "m", SFT, 1, reads={"sequences": form, "bank": bank}).here()
    card = files.read_json(splice / "card.json")
    described = inputs_file.read(made.output)
    assert {key: described[key] for key in ("task", "spec", "labels", "modality")} == {
        "task": "splice-donor", "spec": SIZES, "labels": card["labels"], "modality": "rna",
    }  # fmt: skip
    assert described["sequences"] == form
    assert described["encoder"] == {
        "path": str(esm), "identity": checkpoint.read_manifest(esm)["identity"], "reading": READING, "bank": True,
    }  # fmt: skip
    stored = files.read_json(made.output / inputs_file.FILE)["encoder"]["path"]
    assert not stored.startswith("/")
    # The manifest covers the file, and the encoder determines the identity.
    assert inputs_file.FILE in made.manifest["files"]
    other = made.output / inputs_file.FILE
    other.write_text(other.read_text().replace('"splice-donor"', '"protein-fitness"'))
    with pytest.raises(UserError, match=rf"{other}: its SHA-256"):
        models.compose(made.output)


def test_model_of_tokens_remembers_no_encoder(base, splice, tmp_path):
    made = Run("sft", base, splice, tmp_path, SFT, 1).here()
    described = inputs_file.read(made.output)
    assert (described["sequences"], described["encoder"], described["bridge"]) == ("tokens", None, None)
    assert source_of(made.output) == SequenceSource()
    assert inputs_file.read(base) is None
    assert source_of(base) == SequenceSource()


def test_what_determines_the_weights_determines_the_hashes(base, esm, bank, splice, tmp_path):
    card = files.read_json(splice / "card.json")

    def hashes(given, kind="linear"):
        model = models.compose(base)
        connect(model, given, kind)
        return inputs_file.hashes(given.describe(card, model))

    def live(**reading):
        return open_source("features", "rna", None, esm, READING | reading)

    first = hashes(open_source("features", "rna", bank))
    assert hashes(live()) == hashes(live(batch_tokens=7)) == first
    copy = encoder(tmp_path / "encoders" / "copy" / "checkpoint")
    assert hashes(open_source("features", "rna", None, copy, READING)) == first
    other = encoder(tmp_path / "encoders" / "other" / "checkpoint", seed=1)
    different = [
        hashes(open_source("both", "rna", bank)),
        hashes(open_source("features", "rna", bank), "mlp"),
        hashes(open_source("features", "rna", None, other, READING)),
        hashes(live(layer=1)),
        hashes(live(pool=3)),
        hashes(live(flank=3)),
        hashes(live(letters={"U": "A"})),
        hashes(live(storage="bfloat16")),
        hashes(live(trained=True)),
        hashes(SequenceSource()),
    ]
    assert len({json.dumps(found) for found in (first, *different)}) == 11


def test_bank_of_a_task_holds_the_windows_of_all_its_stretches(esm, tmp_path):
    """A table with positions: each sequence is cut around its own."""
    draw = torch.Generator().manual_seed(0)
    rows = []
    for number in range(40):
        sequence = "".join("ACGT"[at] for at in torch.randint(0, 4, (30,), generator=draw).tolist())
        rows.append((f"v{number}", sequence, "ab"[number % 2], "in" if number % 4 else "out", 1 + number % 30))
    frame = pd.DataFrame(rows, columns=["id", "seq", "label", "family", "pos"])
    frame.to_csv(tmp_path / "table.csv", index=False)
    spec = {
        "file": str(tmp_path / "table.csv"), "modality": "dna", "labels": ["a", "b"],
        "question": "Which?", "ood": ["out"],
        "columns": {"id": "id", "sequence": "seq", "label": "label", "group": "family", "position": "pos"},
        "train": 15, "validation": 5, "id": 5,
    }  # fmt: skip
    splits.prepare("own", spec, 0, tmp_path / "data")
    reading = READING | {"flank": 4}
    feature_bank.build_for_task(esm, tmp_path / "data", reading, tmp_path / "w", tmp_path / "bank")
    opened = feature_bank.Bank(tmp_path / "bank")
    assert opened.modality == "dna"
    everything = pd.concat([pd.read_parquet(tmp_path / "data" / f"{split}.parquet") for split in SPLITS])
    positions = dict(zip(frame["seq"], frame["pos"], strict=True))
    network = encoders.load(esm, -1)
    tokenizer = tokenization.build_for_encoder()
    assert len(everything) == 35
    for row in everything.itertuples():
        at = positions[row.sequence] - 1
        text = row.sequence[max(0, at - 4) : at + 4]
        (ids,) = encode_prompts(tokenizer, [row.prompt], SequenceSource("features", opened), [row.segments], 1000)
        found = opened.rows(torch.tensor([token - 1000 for token in ids if token >= 1000]))
        (expected,) = encoders.encode(network, [text], "dna", reading)
        torch.testing.assert_close(found, expected, atol=4e-3, rtol=0)


def test_task_without_residues_has_no_bank(esm, tmp_path, monkeypatch):
    from tiny import ROOT

    monkeypatch.chdir(ROOT)
    splits.prepare("cell-type", SIZES, 0, tmp_path / "data")
    with pytest.raises(UserError, match=r"data: .*no residues"):
        feature_bank.build_for_task(esm, tmp_path / "data", READING, tmp_path / "w", tmp_path / "bank")
    assert not (tmp_path / "bank").exists()


def test_structure_of_cisterna_is_what_the_tables_of_users_refuse(tokenizer):
    from cisterna.tasks.tables import MARKUP

    for token in tokenizer.get_added_vocab():
        assert MARKUP.search(f"text {token} text"), token
    assert MARKUP.search("\x00")
