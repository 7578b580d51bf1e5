"""Encoders of the transformers library and those made here: a row a residue, of the layer asked for.

Each kind that people use is here as a small random network in a local folder, with the tokenizer of its kind.
"""

import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from cisterna import cli
from cisterna.artifacts import checkpoint, files
from cisterna.data import corpus
from cisterna.errors import UserError
from cisterna.models import make_base
from cisterna.sequences import encoders, tokenization
from cisterna.sequences.encoders import huggingface
from cisterna.training import encoder as stage
from cisterna.training.callback import StageCallback
from tiny import ESM, READING, ROOT, backbone, encoder

CPU = torch.device("cpu")
SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
DNA = ["ATTGCACG", "ACGTACGTACGTACGTACGTAC", "G", "TTAGGCAT"]
SPECIAL = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "pad", "cls", "sep", "mask")}


def esm(folder, words, length=64, **options):
    """An ESM and its tokenizer, as they lie on the hub."""
    from transformers import EsmConfig, EsmForMaskedLM, EsmTokenizer

    folder.mkdir(parents=True)
    (folder / "words.txt").write_text("\n".join(words))
    tokenizer = EsmTokenizer(str(folder / "words.txt"), **options)
    tokenizer.save_pretrained(folder)
    config = EsmConfig(
        **SHAPE,
        vocab_size=len(words),
        pad_token_id=tokenizer.pad_token_id,
        mask_token_id=tokenizer.mask_token_id,
        position_embedding_type="rotary",
        token_dropout=True,
        initializer_range=0.5,
        max_position_embeddings=length,
    )
    EsmForMaskedLM(config).save_pretrained(folder)


def bert(folder, core, length=64):
    """A BERT with any tokenizer that puts [CLS] and [SEP] around a text."""
    from tokenizers import processors
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    around = [(token, core.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **SPECIAL)
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        **SHAPE, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, max_position_embeddings=length,
        initializer_range=0.5,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each kind of encoder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("pretrained")
    letters = "L A G V S E R T I D P K Q N F Y M H W C X B U Z O . -".split()
    esm(root / "esm", ["<cls>", "<pad>", "<eos>", "<unk>", *letters, "<null_1>", "<mask>"])
    sixes = [a + b for a in triples() for b in triples()]
    esm(root / "6-mers", ["<unk>", "<pad>", "<mask>", "<cls>", *sixes, *"ATCGN"], eos_token=None)

    pieces = Tokenizer(models.BPE(unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    draw = random.Random(0)
    texts = ["".join(draw.choices("ACGT", k=60)) for _ in range(50)]
    pieces.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=60, special_tokens=list(SPECIAL.values()), show_progress=False)
    )
    bert(root / "bpe", pieces)

    genes = [*SPECIAL.values(), "NKG7", "GNLY", "CD3D", "IL-32"]
    words = Tokenizer(models.WordLevel({gene: at for at, gene in enumerate(genes)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bert(root / "genes", words)

    (root / "dna.txt").write_text("\n".join(texts))
    spec = backbone(initializer_range=0.5) | {"tokenizer": {"vocab_size": 300, "files": [str(root / "dna.txt")]}}
    make_base(spec, root / "causal")
    return SimpleNamespace(**{path.name.replace("6-", "six"): path for path in root.iterdir()})


def triples():
    return [a + b + c for a in "ATCG" for b in "ATCG" for c in "ATCG"]


def load(folder, layer=-1, **spec):
    return huggingface.load({"pretrained": str(folder)} | spec, layer, CPU)


KINDS = {
    "esm": ("protein", ["MKV", "WWYACD", "A"], list),
    "sixmers": ("dna", [*DNA, "ACGTNACGTACG"], None),
    "bpe": ("dna", DNA, None),
    "causal": ("dna", DNA, None),
    "genes": ("rna", ["NKG7 GNLY IL-32", "CD3D NKG7"], str.split),
}


def reference(folder, text, layer):
    """Each residue with the hidden state of its token: one text alone, its tokens found by spelling the text."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, module = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    ids = tokenizer(text)["input_ids"]
    with torch.no_grad():
        states = module(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0]
    rows, left = [], text.replace(" ", "")
    for token, state in zip(tokenizer.convert_ids_to_tokens(ids), states, strict=True):
        piece = token.strip("Ġ▁")
        if left.startswith(piece):
            left = left[len(piece) :]
            rows += [state] if " " in text else [state] * len(piece)
        else:
            assert token in tokenizer.all_special_tokens
    assert not left
    return torch.stack(rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [0, 1, -1])
def test_each_residue_has_the_hidden_state_of_its_token(folders, kind, layer):
    folder = getattr(folders, kind)
    modality, texts, _ = KINDS[kind]
    found = load(folder, layer).forward(texts, modality)
    for text, rows in zip(texts, found, strict=True):
        torch.testing.assert_close(rows, reference(folder, text, layer), atol=2e-5, rtol=1e-4)
        assert len(rows) == encoders.residues(text)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_depend_on_the_batch(folders, kind):
    network = load(getattr(folders, kind))
    modality, texts, _ = KINDS[kind]
    for text, rows in zip(texts, network.forward(texts, modality), strict=True):
        torch.testing.assert_close(rows, network.forward([text], modality)[0], atol=2e-5, rtol=1e-4)


def test_six_bases_share_a_row_and_leftover_bases_have_their_own(folders):
    rows = load(folders.sixmers).forward(["ATTGCACG"], "dna")[0]
    assert len(torch.unique(rows, dim=0)) == 3
    assert torch.equal(rows[:6], rows[:1].expand(6, -1))


def test_tokens_of_a_causal_encoder_hold_several_residues(folders):
    """Else nothing here shows that its pieces are spelled out."""
    assert len(tokenization.load(folders.causal)(DNA[1])["input_ids"]) < len(DNA[1])


def test_encoder_says_what_it_is_and_what_it_gives(folders):
    network = load(folders.esm, 1)
    (rows,) = network.forward(["MKV"], "protein")
    assert (network.name, network.revision, network.layer) == (str(folders.esm), None, 1)
    assert (network.dtype, network.width) == (rows.dtype, rows.shape[1]) == (torch.float32, 16)
    assert not network.module.training


@pytest.mark.parametrize("dtype", ["bfloat16", "auto"])
def test_weights_are_loaded_in_the_type_asked_for(folders, dtype):
    network = load(folders.esm, dtype=dtype)
    expected = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    assert {weight.dtype for weight in network.module.parameters()} == {network.dtype} == {expected}


# --- Layers ---


@pytest.mark.parametrize(
    ("layer", "state"), [("encoder.layer.0", 1), ("embeddings", 0), ("encoder.emb_layer_norm_after", 2), ("encoder", 2)]
)
def test_a_layer_may_be_the_name_of_a_module(folders, layer, state):
    (rows,) = load(folders.esm, layer).forward(["MKVLA"], "protein")
    torch.testing.assert_close(rows, reference(folders.esm, "MKVLA", state), atol=2e-5, rtol=1e-4)


def test_width_is_that_of_the_module_that_is_read(folders):
    network = load(folders.esm, "encoder.layer.1.intermediate")
    assert network.forward(["MKV"], "protein")[0].shape == (3, 24)
    assert network.width == 24


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (3, r"layer 3 does not exist; it has 2 layers \(0 to 2\)"),
        (-4, "layer -4 does not exist"),
        ("encoder.layer.2", "no module encoder.layer.2; expected a name such as embeddings"),
    ],
)
def test_layer_that_does_not_exist_is_refused(folders, layer, message):
    with pytest.raises(UserError, match=message):
        load(folders.esm, layer)


# --- What it cannot read ---


@pytest.mark.parametrize(
    ("kind", "text"),
    [("esm", "MKJV"), ("esm", "MJJV"), ("sixmers", "ACGTAUACGT"), ("bpe", "ACGUACG"), ("genes", "NKG7 CD19 GNLY")],
)
def test_unknown_letter_is_refused_and_replaced_with_letters(folders, kind, text):
    network = load(getattr(folders, kind))
    modality = KINDS[kind][0]
    with pytest.raises(UserError, match=r"its tokenizer does not know a letter of it \(see `letters`\)") as caught:
        encoders.encode(network, [KINDS[kind][1][0], text], modality, READING)
    assert text in str(caught.value)
    if kind == "genes":
        return
    replaced = {"J": "L", "U": "T"}
    (rows,) = encoders.encode(network, [text], modality, READING | {"letters": replaced})
    (expected,) = encoders.encode(network, [text.translate(str.maketrans(replaced))], modality, READING)
    assert torch.equal(rows, expected)


def test_sequence_longer_than_the_encoder_can_read_is_refused(folders):
    network = load(folders.bpe)
    reading = READING | {"storage": "bfloat16"}
    text = "AGCT" * 200
    with pytest.raises(UserError, match=r"reads at most 64 tokens, .* make `flank` smaller"):
        encoders.encode(network, ["ACGT", text], "dna", reading)
    # Rotary positions have no end.
    assert len(encoders.encode(load(folders.sixmers), [text], "dna", reading)[0]) == len(text)


def test_made_encoder_reads_each_modality_with_tokens_of_its_own(tmp_path):
    network = encoders.load(encoder(tmp_path / "tiny-esm" / "checkpoint"), -1)
    assert network.name == "tiny-esm"
    rows = {modality: network.forward(["GACCA", "AC"], modality) for modality in tokenization.ALPHABETS}
    assert {tuple(found.shape) for pair in rows.values() for found in pair} == {(5, 16), (2, 16)}
    assert not torch.allclose(rows["dna"][0], rows["rna"][0], atol=0.1)
    assert not torch.allclose(rows["dna"][0], rows["protein"][0], atol=0.1)
    with pytest.raises(UserError, match=r"<rna>GATTACA: \['T'\] not in the rna alphabet ACGUN"):
        network.forward(["GATTACA"], "rna")
    (found,) = encoders.encode(network, ["GATTACA"], "rna", READING | {"letters": {"T": "U"}})
    assert torch.equal(found, encoders.encode(network, ["GAUUACA"], "rna", READING)[0])


# --- What cannot be loaded ---


def test_weights_that_are_missing_or_do_not_fit_are_refused(folders, tmp_path):
    for name, change in {
        "missing": lambda tensors: tensors.pop("esm.encoder.layer.1.attention.self.query.weight"),
        "another shape": lambda tensors: tensors.update(
            {"esm.encoder.layer.1.intermediate.dense.weight": torch.ones(48, 16)}
        ),
    }.items():
        folder = shutil.copytree(folders.esm, tmp_path / name)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=rf"encoder {folder}: weights do not fit the model") as caught:
            load(folder)
        assert "encoder.layer.1" in str(caught.value)


@pytest.mark.parametrize("broken", ["absent", "empty", "no-weights", "no-tokenizer", "hub"])
def test_encoder_that_cannot_be_loaded_is_the_users_error(folders, tmp_path, broken):
    folder = tmp_path / "elsewhere"
    if broken == "empty":
        folder.mkdir()
    elif broken == "hub":
        folder = "someone/esm-that-is-nowhere"
    elif broken != "absent":
        shutil.copytree(folders.bpe, folder)
        for path in folder.glob("*.safetensors" if broken == "no-weights" else "tokenizer*"):
            path.unlink()
    with pytest.raises(
        UserError, match=rf"encoder {folder}: cannot be loaded; expected a hub id or a local folder"
    ) as caught:
        load(folder)
    if broken == "hub":
        assert "Check your internet connection" in str(caught.value)  # not in the first line of the library's message


CODE = """
from transformers import BertConfig, BertModel

class OwnConfig(BertConfig):
    model_type = "own-bert"

class OwnModel(BertModel):
    config_class = OwnConfig

    def forward(self, *inputs, **options):
        answer = super().forward(*inputs, **options)
        answer.hidden_states = tuple(2 * state for state in answer.hidden_states)
        return answer
"""


@pytest.fixture
def own_code(folders, tmp_path, monkeypatch):
    """A folder with a model of a class of its own, whose code lies beside its weights."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = shutil.copytree(folders.bpe, tmp_path / "own_code")
    (folder / "own.py").write_text(CODE)
    config = files.read_json(folder / "config.json")
    classes = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own-bert", "auto_map": classes}))
    return folder


def test_code_of_a_model_runs_only_if_it_is_trusted(own_code, folders):
    with pytest.raises(UserError, match="trust_remote_code if it has code of its own"):
        load(own_code)
    found = load(own_code, trust_remote_code=True, revision="main").forward(DNA, "dna")
    plain = load(folders.bpe).forward(DNA, "dna")
    for rows, expected in zip(found, plain, strict=True):
        torch.testing.assert_close(rows, 2 * expected)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("from transformers.pytorch_utils import find_pruneable_heads_and_indices", "for another version of transform"),
        ("from transformers import BertModel; BertModel.get_head_mask", r"fails with transformers \d.*AttributeError"),
    ],
)
def test_code_for_another_version_of_transformers_is_the_users_error(own_code, line, said):
    (own_code / "own.py").write_text(f"{line}\n{CODE}")
    with pytest.raises(UserError, match=said):
        load(own_code, trust_remote_code=True, revision="main")


# --- The checkpoint of a pretrained encoder ---


@pytest.fixture
def referred(folders, tmp_path):
    """The checkpoint of an encoder in a local folder, and that folder."""
    source = shutil.copytree(folders.esm, tmp_path / "elsewhere")
    spec = {"pretrained": str(source), "revision": None, "trust_remote_code": False, "package": "transformers"}
    spec |= {"dtype": "float32"}
    output = tmp_path / "encoders" / "esm" / "checkpoint"
    assert (
        cli.main(["encoder", "--spec", json.dumps(spec), "--work", str(tmp_path / "w"), "--output", str(output)]) == 0
    )
    return output, source


def test_checkpoint_of_a_pretrained_encoder_holds_no_weights_but_their_hashes(referred, folders):
    output, source = referred
    manifest = checkpoint.verify(output)
    assert {path.name for path in output.iterdir()} == {"encoder.json", "manifest.json"}
    assert (manifest["kind"], manifest["parent"]) == ("encoder", None)
    assert manifest["data"]["model.safetensors"] == files.sha256(source / "model.safetensors")
    network = encoders.load(output, -1)
    assert torch.equal(network.forward(["MKV"], "protein")[0], load(folders.esm).forward(["MKV"], "protein")[0])
    assert not any(weight.requires_grad for weight in network.module.parameters())


@pytest.mark.parametrize("changed", ["weights", "tokenizer", "code", "gone"])
def test_changed_files_of_a_pretrained_encoder_are_refused(referred, changed):
    output, source = referred
    if changed == "weights":
        tensors = load_file(source / "model.safetensors")
        tensors["esm.encoder.emb_layer_norm_after.bias"] += 1
        save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    elif changed == "tokenizer":
        (source / "tokenizer_config.json").write_text("{}")
    elif changed == "code":
        (source / "own.py").write_text("print(1)")
    else:
        shutil.rmtree(source)
    with pytest.raises(UserError, match=rf"encoder {source}: its files have changed since {output}"):
        encoders.load(output, -1)


def test_checkpoint_that_is_no_encoder_is_refused(base):
    with pytest.raises(UserError, match="not an encoder, this is a checkpoint of kind base"):
        encoders.load(base, -1)


# --- encode ---


def test_sequences_come_back_in_their_order_in_batches_that_fit(folders, monkeypatch):
    network = load(folders.esm)
    sizes = []
    original = huggingface.Encoder.forward

    def forward(self, sequences, modality):
        sizes.append((len(sequences), max(map(len, sequences))))
        return original(self, sequences, modality)

    monkeypatch.setattr(huggingface.Encoder, "forward", forward)
    draw = random.Random(0)
    texts = ["".join(draw.choices("MKVLA", k=draw.randint(1, 40))) for _ in range(30)]
    found = encoders.encode(network, texts, "protein", READING | {"batch_tokens": 30})
    assert all(count * longest <= 30 or count == 1 for count, longest in sizes)
    assert sum(count for count, _ in sizes) == 30 > len(sizes)
    for text, rows in zip(texts, found, strict=True):
        assert len(rows) == len(text)
        torch.testing.assert_close(rows.float(), original(network, [text], "protein")[0], atol=4e-3, rtol=0)
    assert encoders.encode(network, [], "protein", READING) == []


@pytest.mark.parametrize("window", [None, 1, 2, 5, 7, 100])
def test_pooling_is_the_mean_over_windows(window):
    rows = torch.randn(13, 4, generator=torch.Generator().manual_seed(0))
    size = window or 1
    expected = torch.stack([rows[at : at + size].mean(dim=0) for at in range(0, 13, size)])
    found = encoders.pool(rows, window)
    torch.testing.assert_close(found, expected)
    assert len(found) == encoders.rows(13, window)


def test_pooling_in_half_precision_sums_in_float32():
    rows = torch.full((5000, 1), 1.0, dtype=torch.bfloat16)
    assert encoders.pool(rows, 5000).item() == 1.0


# --- An encoder made here ---

TRAINING = {
    "corpora": ["dna", "protein"],
    "block_size": 40,
    "mlm_probability": 0.15,
    "seed": 0,
    "save_minutes": 10.0,
    "num_train_epochs": 2.0,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 16,
    "logging_steps": 5,
}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """DNA that repeats a word, and shipped proteins: records of 60 to 100 residues."""
    folder = tmp_path_factory.mktemp("corpora")
    draw = random.Random(0)
    repeats = [("".join(draw.sample("ACGT", 4)) * 25)[: draw.randint(60, 100)] for _ in range(300)]
    proteins = [text[:90] for text in corpus.documents(ROOT / "resources/corpora/protein.fasta.gz", "protein")][:200]
    for name, texts in (("dna", repeats), ("protein", proteins)):
        (folder / f"{name}.fasta").write_text("".join(f">{at}\n{text}\n" for at, text in enumerate(texts)))
    return {name: {"file": str(folder / f"{name}.fasta"), "modality": name} for name in ("dna", "protein")}


def command(folder, corpora, architecture=ESM, **training):
    spec = {"architecture": architecture, "training": TRAINING | training}
    return [
        "encoder", "--spec", json.dumps(spec), "--corpora", json.dumps(corpora), "--work", str(folder / ".work"),
        "--output", str(folder / "nano-esm" / "checkpoint"),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(corpora, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    assert cli.main(command(folder, corpora)) == 0
    return folder / "nano-esm" / "checkpoint"


def test_command_trains_an_encoder_that_verifies_and_reads(trained, corpora):
    manifest = checkpoint.verify(trained)
    assert (manifest["kind"], manifest["parent"]) == ("encoder", None)
    assert manifest["recipe"]["architecture"] == ESM
    assert manifest["data"] == {name: files.sha256(Path(entry["file"])) for name, entry in corpora.items()}
    assert manifest["trained"]["largest_weight_change"] > 0
    network = encoders.load(trained, -1)
    assert network.name == "nano-esm"
    assert [rows.shape for rows in network.forward(["ACGT", "AC"], "dna")] == [(4, 16), (2, 16)]
    # The network that reads is the one that was trained: its embeddings of residues are those in the file.
    weights = load_file(trained / "model.safetensors")
    stored = weights["esm.embeddings.word_embeddings.weight"]
    assert torch.equal(network.module.get_input_embeddings().weight, stored)


def test_masked_residues_are_predicted_better_than_by_their_frequency(trained, corpora):
    measured = files.read_json(trained / "masked.json")
    assert set(measured) == {"dna", "protein"}
    for name, found in measured.items():
        letters = 4 if name == "dna" else 20
        assert found["perplexity"] > 1
        assert 0.7 * letters < found["frequency"] < 1.05 * letters
        heldout = [text for text in corpus.documents(Path(corpora[name]["file"]), name) if corpus.is_heldout(text)]
        assert 0.08 * sum(map(len, heldout)) < found["n"] < 0.25 * sum(map(len, heldout))
    assert measured["dna"]["perplexity"] < 0.8 * measured["dna"]["frequency"]


def test_encoder_that_knows_nothing_has_the_vocabularys_size_as_perplexity(corpora, tmp_path):
    tokenizer = tokenization.build_for_encoder()
    model = stage.make(ESM, tokenizer)
    with torch.no_grad():
        model.lm_head.decoder.weight.zero_()
        model.lm_head.bias.zero_()
    model.save_pretrained(tmp_path)
    pieces = stage.read(tokenizer, Path(corpora["dna"]["file"]), "dna", 40)
    found = stage.masked_perplexity(tmp_path, tokenizer, *pieces, 0.5)
    assert found["perplexity"] == pytest.approx(len(tokenizer), rel=1e-4)


def test_pieces_are_between_tags_and_held_out_documents_are_not_trained_on(corpora):
    tokenizer = tokenization.build_for_encoder()
    path = Path(corpora["protein"]["file"])
    training, heldout = stage.read(tokenizer, path, "protein", 40)
    opening, closing = tokenizer.convert_tokens_to_ids(["<protein>", "</protein>"])
    for pieces, flag in ((training, False), (heldout, True)):
        assert {(piece[0], piece[-1]) for piece in pieces} == {(opening, closing)}
        assert max(map(len, pieces)) == 42
        residues = "".join(tokenizer.convert_ids_to_tokens(int(at))[-3] for piece in pieces for at in piece[1:-1])
        documents = (text for text in corpus.documents(path, "protein") if corpus.is_heldout(text) is flag)
        assert residues == "".join(documents)


def test_pieces_longer_than_the_learned_positions_are_refused(corpora, tmp_path, capsys):
    words = command(tmp_path, corpora)
    spec = json.loads(words[words.index("--spec") + 1])
    spec["architecture"] |= {"position_embedding_type": "absolute", "max_position_embeddings": 20}
    words[words.index("--spec") + 1] = json.dumps(spec)
    assert cli.main(words) == 2
    assert "make block_size smaller, or max_position_embeddings larger" in capsys.readouterr().err
    assert not (tmp_path / "nano-esm").exists()


class Killed(BaseException):
    pass


@pytest.mark.slow
def test_killed_training_resumes_to_the_same_encoder_and_another_seed_gives_another(
    corpora, tmp_path, monkeypatch, capsys
):
    for name, seed in (("undisturbed", 0), ("other", 1)):
        assert cli.main(command(tmp_path / name, corpora, seed=seed, num_train_epochs=0.3)) == 0
    asked = command(tmp_path, corpora, save_minutes=0, num_train_epochs=0.3)
    original = StageCallback.on_save

    def on_save(self, args, state, *rest, **options):
        original(self, args, state, *rest, **options)
        if state.global_step == 7:  # between the logs of steps 5 and 10
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(StageCallback, "on_save", on_save)
        with pytest.raises(Killed):
            cli.main(asked)
    assert not (tmp_path / "nano-esm").exists()
    capsys.readouterr()
    assert cli.main(asked) == 0
    assert "resuming from step 7 of" in capsys.readouterr().out
    resumed = checkpoint.verify(tmp_path / "nano-esm" / "checkpoint")["files"]
    undisturbed, other = (
        checkpoint.read_manifest(tmp_path / name / "nano-esm" / "checkpoint")["files"]
        for name in ("undisturbed", "other")
    )
    assert resumed == undisturbed
    assert resumed["model.safetensors"] != other["model.safetensors"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (">a\nACGU\n", "record 1: letter 'U' at position 4 is not a letter of dna"),
        (">a\nACGT\n", "no document falls into the held-out part"),
        ("", "no documents"),
    ],
)
def test_corpus_that_cannot_be_read_is_named_and_nothing_is_published(tmp_path, capsys, content, message):
    path = tmp_path / "dna.fasta"
    path.write_text(content)
    assert cli.main(command(tmp_path, {"dna": {"file": str(path), "modality": "dna"}})) == 2
    said = capsys.readouterr().err
    assert str(path) in said
    assert message in said
    assert not (tmp_path / "nano-esm").exists()


@pytest.mark.parametrize(
    "change", [{"hidden_size": 15}, {"hidden_size": "wide"}, {"model_type": "esm-9"}], ids=str,
)  # fmt: skip
def test_architecture_that_cannot_be_made_is_the_users_error(corpora, tmp_path, capsys, change):
    assert cli.main(command(tmp_path, corpora, ESM | change)) == 2
    assert "encoder architecture" in capsys.readouterr().err
    assert not (tmp_path / "nano-esm").exists()


def test_encoder_with_random_weights_is_another_of_the_same_shape_and_always_the_same(folders):
    sequences = ["MKV", "WWYACD"]
    learned, first, second = (
        load(folders.esm, **spec).forward(sequences, "protein") for spec in ({}, *[{"random_weights": True}] * 2)
    )
    for own, drawn, again in zip(learned, first, second, strict=True):
        assert drawn.shape == own.shape
        assert torch.equal(drawn, again)
        assert not torch.allclose(drawn, own, atol=0.1)
