"""The feature bank: every residue of every sequence, whatever the shards and the order; any other bank is refused."""

import os
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from cisterna import cli
from cisterna.artifacts import checkpoint
from cisterna.constants import SPLITS
from cisterna.errors import UserError
from cisterna.sequences import encoders, feature_bank
from cisterna.sequences.encoders import huggingface
from cisterna.sequences.source import LiveEncoder, open_source
from cisterna.sequences.windows import cut_window
from runs import SFT, Run, published
from tiny import READING, encoder

TEXTS = ["ACGU", "GGC", "AUGCAUGCAUGCAUGCAUGCA", "C", "UUUUUUUUUUUU", "GAUUACA", "NNAC"]
ROWS = sum(map(len, TEXTS))
WIDTH = 16


def build(esm, folder, texts=TEXTS, rows_of_a_shard=None, save_minutes=10.0, modality="rna", **reading):
    """A bank at `folder`; shards of so many rows, or one for all."""
    shard_bytes = 2 * WIDTH * rows_of_a_shard if rows_of_a_shard else feature_bank.SHARD_BYTES
    work = folder.parent / f".work-{folder.name}"
    feature_bank.build(esm, texts, modality, READING | reading, {}, work, folder, shard_bytes, save_minutes)
    return feature_bank.Bank(folder)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "manifest.json"}


def read(source, text):
    row, count = source.locate(text)
    return source.rows(torch.arange(row, row + count))


@pytest.fixture(scope="module")
def expected(esm):
    """What the encoder gives for each text alone, as stored."""
    network = encoders.load(esm, -1)
    return {text: encoders.encode(network, [text], "rna", READING)[0] for text in TEXTS}


# --- Windows ---


@given(st.integers(1, 30), st.data())
def test_window_keeps_both_flanks_and_shows_the_residues_of_the_stretch(length, data):
    sequence = "".join(data.draw(st.lists(st.sampled_from("ACGT"), min_size=length, max_size=length)))
    start = data.draw(st.integers(0, length - 1))
    stop = data.draw(st.integers(start + 1, length))
    center = data.draw(st.none() | st.integers(0, length - 1))
    flank = data.draw(st.integers(1, 20))
    middle = (start + stop) // 2 if center is None else center
    kept = [at for at in range(length) if middle - flank <= at < middle + flank]
    shown = [at for at in kept if start <= at < stop]

    found = cut_window(sequence, start, stop, center, flank)
    assert found.text == "".join(sequence[at] for at in kept)
    assert [kept[at] for at in range(found.first, found.last)] == shown
    assert center is not None or shown
    # Where the sequence is long enough, both flanks are whole.
    if middle >= flank and middle + flank <= length:
        assert len(found.text) == 2 * flank


def test_window_of_a_short_sequence_is_the_whole_of_it():
    assert cut_window("ACGTACGT", 2, 3, None, 1024) == ("ACGTACGT", 2, 3)


# --- What a bank holds ---


@pytest.mark.parametrize("size", [None, 1, 5, 21, 30])
def test_every_sequence_has_its_own_rows_whatever_the_shards(esm, expected, tmp_path, size):
    bank = build(esm, tmp_path / "bank", rows_of_a_shard=size)
    shards = sorted((tmp_path / "bank").glob("*.safetensors"))
    assert len(shards) == {None: 1, 1: len(TEXTS), 5: 6, 21: 3, 30: 3}[size]
    assert sum(len(load_file(shard)["features"]) for shard in shards) == ROWS
    for text in TEXTS:
        # float16 of sums that other batches round differently
        torch.testing.assert_close(read(bank, text), expected[text], atol=4e-3, rtol=0)
    everything = torch.cat([load_file(shard)["features"] for shard in shards])
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))
    assert torch.equal(bank.rows(order), everything[order])
    assert torch.equal(bank.rows(torch.tensor([3, 3, 0])), everything[[3, 3, 0]])
    assert bank.rows(torch.tensor([], dtype=torch.int64)).shape == (0, WIDTH)


def test_rows_of_one_letter_differ_with_their_neighbours(expected):
    """Else a row could be taken for another's unseen."""
    rows = torch.cat(list(expected.values())).float()
    assert (torch.cdist(rows, rows) + 10 * torch.eye(len(rows))).min() > 0.02


def test_index_says_where_each_sequence_is_and_manifest_says_what_of(esm, bank, splice):
    manifest = checkpoint.verify(bank)
    assert (manifest["kind"], manifest["recipe"]) == ("features", READING)
    assert checkpoint.parent_of(bank, manifest) == esm
    assert set(manifest["data"]) == {f"{split}.parquet" for split in SPLITS}
    sequences = {text for split in SPLITS for text in pd.read_parquet(splice / f"{split}.parquet")["sequence"]}
    assert manifest["trained"] == {"modality": "rna", "sequences": len(sequences), "rows": 9 * len(sequences)}
    opened = feature_bank.Bank(bank)
    found = sorted(opened.locate(text) for text in sequences)
    assert found == [(9 * number, 9) for number in range(len(sequences))]


def test_bank_is_read_from_a_memory_map(bank):
    (path,) = bank.glob("*.safetensors")
    with open("/proc/self/maps") as maps:
        opened = feature_bank.Bank(bank)
        assert str(path) in maps.read()
    assert opened.rows(torch.tensor([0])).dtype == torch.float16


@pytest.mark.parametrize("window", [1, 2, 3, 21, 50])
def test_pooled_rows_are_means_of_windows_of_residues(esm, expected, tmp_path, window):
    bank = build(esm, tmp_path / "bank", pool=window)
    for text in TEXTS:
        parts = [expected[text][at : at + window].float() for at in range(0, len(text), window)]
        torch.testing.assert_close(
            read(bank, text).float(), torch.stack([part.mean(dim=0) for part in parts]), atol=4e-3, rtol=0
        )


def test_storage_is_the_type_on_disk(esm, expected, tmp_path):
    bank = build(esm, tmp_path / "bank", storage="bfloat16")
    assert read(bank, "GGC").dtype == torch.bfloat16
    torch.testing.assert_close(read(bank, "GGC").float(), expected["GGC"].float(), atol=0.02, rtol=0.01)


def test_features_that_do_not_fit_the_storage_are_refused(tmp_path):
    """Layer norm with a weight of 1e5: within bfloat16, beyond float16."""

    def enlarge(folder):
        tensors = load_file(folder / "model.safetensors")
        tensors["esm.encoder.emb_layer_norm_after.weight"] *= 1e5
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        manifest = checkpoint.read_manifest(folder)
        arguments = {key: manifest[key] for key in ("kind", "recipe", "seed", "data", "trained", "measured")}
        checkpoint.write_manifest(folder, published=folder, parent=None, **arguments)

    large = encoder(tmp_path / "large" / "checkpoint")
    enlarge(large)
    with pytest.raises(UserError, match=r"do not fit float16; use storage: bfloat16, or another layer"):
        build(large, tmp_path / "bank")
    assert not (tmp_path / "bank").exists()
    build(large, tmp_path / "bank", storage="bfloat16")


def test_texts_are_encoded_once_each_in_batches_of_like_length(esm, tmp_path, monkeypatch):
    read_texts = []
    original = huggingface.Encoder.forward

    def forward(self, sequences, modality):
        assert max(map(len, sequences)) * len(sequences) <= 24
        read_texts.extend(sequences)
        return original(self, sequences, modality)

    monkeypatch.setattr(huggingface.Encoder, "forward", forward)
    encoders.load(esm, -1)
    assert read_texts.pop() == "A"  # by which it finds its width
    build(esm, tmp_path / "bank", texts=TEXTS * 3, batch_tokens=24)
    assert sorted(read_texts) == sorted([*TEXTS, "A"])


def test_the_same_task_gives_the_same_bytes_in_whatever_order_it_comes(esm, tmp_path):
    build(esm, tmp_path / "one", rows_of_a_shard=20)
    build(esm, tmp_path / "other", texts=TEXTS[::-1], rows_of_a_shard=20)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")
    identities = {checkpoint.read_manifest(tmp_path / name)["identity"] for name in ("one", "other")}
    assert len(identities) == 1


# --- A build that is killed ---


class Killed(BaseException):
    pass


@pytest.fixture
def calls(monkeypatch):
    """The batches that encoders read; the third of them kills the build."""
    found = []
    original = huggingface.Encoder.forward

    def forward(self, sequences, modality):
        if sequences == ["A"]:  # by which it finds its width
            return original(self, sequences, modality)
        found.append(sequences)
        if len(found) == 3:
            raise Killed
        return original(self, sequences, modality)

    monkeypatch.setattr(huggingface.Encoder, "forward", forward)
    return found


@pytest.fixture
def killed(esm, tmp_path, calls):
    """The work folder of a build that was killed when it read its third shard of six, and the calls of the encoder."""
    with pytest.raises(Killed):
        build(esm, tmp_path / "bank", rows_of_a_shard=5)
    assert not (tmp_path / "bank").exists()
    return tmp_path / ".work-bank", calls


def test_killed_build_goes_on_after_its_last_whole_shard_to_the_same_bytes(esm, tmp_path, killed, capsys):
    work, calls = killed
    assert sorted(path.name for path in work.glob("*.safetensors")) == [feature_bank._name(0), feature_bank._name(1)]
    build(esm, tmp_path / "bank", rows_of_a_shard=5)
    assert "shard 2/6 is done already" in capsys.readouterr().out
    assert len(calls) == 3 + 4
    build(esm, tmp_path / "undisturbed", rows_of_a_shard=5)
    assert contents(tmp_path / "bank") == contents(tmp_path / "undisturbed")


def test_bank_deleted_after_its_build_comes_back_unread_but_for_a_shard_that_was_changed(esm, tmp_path, calls):
    """As Snakemake deletes it where it was killed before the end of the job was on record."""
    calls.extend([[]] * 3)  # past the one that kills
    build(esm, tmp_path / "bank", rows_of_a_shard=5)
    before = contents(tmp_path / "bank")
    shutil.rmtree(tmp_path / "bank")
    read = len(calls)
    build(esm, tmp_path / "bank", rows_of_a_shard=5)
    assert (contents(tmp_path / "bank"), len(calls)) == (before, read)

    shard = tmp_path / "bank" / feature_bank._name(1)
    with shard.open("r+b") as stream:  # the file that the state holds too
        stream.seek(-1, os.SEEK_END)
        stream.write(b"x")
    assert contents(tmp_path / "bank") != before
    build(esm, tmp_path / "bank", rows_of_a_shard=5)
    assert (contents(tmp_path / "bank"), len(calls)) == (before, read + 1)


@pytest.mark.parametrize(("save_minutes", "again"), [(0, 5), (10, 7)])
def test_killed_build_goes_on_within_a_shard_from_where_it_last_saved(esm, tmp_path, calls, save_minutes, again):
    """Seven texts are seven batches of one shard, and the third is where it is killed."""
    options = {"save_minutes": save_minutes, "batch_tokens": 1}
    with pytest.raises(Killed):
        build(esm, tmp_path / "bank", **options)
    build(esm, tmp_path / "bank", **options)
    assert len(calls) == 3 + again
    assert sorted(text for batch in calls[3:] for text in batch) == sorted(sorted(TEXTS, key=len)[-again:])
    build(esm, tmp_path / "undisturbed", **options)
    assert contents(tmp_path / "bank") == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("changed", ["texts", "reading", "encoder", "shard_bytes", "modality"])
def test_shards_of_another_build_are_discarded_and_the_log_says_why(esm, tmp_path, killed, capsys, changed):
    options = {"texts": TEXTS, "rows_of_a_shard": 5}
    if changed == "texts":
        options["texts"] = [text.replace("A", "C") for text in TEXTS]
    elif changed == "reading":
        options["layer"] = 1
    elif changed == "encoder":
        esm = encoder(tmp_path / "other" / "checkpoint", seed=1)
    elif changed == "modality":  # all of the texts could be RNA, DNA or protein
        options["texts"] = [text.replace("U", "C") for text in TEXTS]
        killed[1].clear()
        with pytest.raises(Killed):
            build(esm, tmp_path / "bank", **options)
        options["modality"] = "dna"
    else:
        options["rows_of_a_shard"] = 6
    capsys.readouterr()
    build(esm, tmp_path / "bank", **options)
    said = capsys.readouterr().out
    assert f"from the start: the state in {killed[0]} is of another run ({changed} changed)" in said
    assert "there" not in said
    build(esm, tmp_path / "undisturbed", **options)
    assert contents(tmp_path / "bank") == contents(tmp_path / "undisturbed")


# --- A bank that is not what it should be ---


@pytest.fixture
def broken(esm, tmp_path):
    """A bank of three shards to break."""
    build(esm, tmp_path / "bank", rows_of_a_shard=21)
    return tmp_path / "bank"


@pytest.mark.parametrize("name", ["features-00000.safetensors", "features-00002.safetensors", "index.arrow"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_each_flipped_byte_truncated_or_missing_file_is_named(broken, name, damage):
    path = broken / name
    whole = path.read_bytes()
    path.unlink()
    if damage == "flipped":
        path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    elif damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=rf"{path}: .*Delete {broken} and rerun"):
        feature_bank.Bank(broken)


def test_shards_exchanged_within_a_bank_or_between_banks_are_refused(esm, broken, tmp_path):
    first, second = broken / feature_bank._name(0), broken / feature_bank._name(1)
    kept = shutil.copytree(broken, tmp_path / "kept")
    first.rename(broken / "x")
    second.rename(first)
    (broken / "x").rename(second)
    with pytest.raises(UserError, match=rf"{first}: its SHA-256 is not the one in the manifest"):
        feature_bank.Bank(broken)
    build(esm, tmp_path / "other", rows_of_a_shard=21, layer=1)
    shutil.copy(tmp_path / "other" / feature_bank._name(1), kept / feature_bank._name(1))
    with pytest.raises(UserError, match=rf"{kept / feature_bank._name(1)}: its SHA-256"):
        feature_bank.Bank(kept)
    shutil.copy(kept / feature_bank._name(2), kept / feature_bank._name(3))
    shutil.copy(tmp_path / "other" / feature_bank._name(1), tmp_path / "other" / feature_bank._name(4))
    with pytest.raises(UserError, match="the manifest does not list it"):
        feature_bank.Bank(tmp_path / "other")


def test_folder_that_is_no_bank_is_refused(base, tmp_path):
    with pytest.raises(UserError, match="not a feature bank, this is a checkpoint of kind base"):
        feature_bank.Bank(base)
    with pytest.raises(UserError, match="not a checkpoint"):
        feature_bank.Bank(tmp_path)


def republish(esm, folder, texts, counts, shards, tmp_path):
    """A bank whose parts were put together wrongly, with a manifest that agrees with its files."""
    paths = []
    for number, shard in enumerate(shards):
        paths.append(tmp_path / f"shard{number}")
        save_file({"features": shard.contiguous()}, paths[-1])
    feature_bank.publish(folder, esm, "rna", READING, {}, texts, counts, paths, {})
    return folder


def test_index_that_does_not_fit_its_shards_is_refused(esm, tmp_path):
    rows = torch.randn(10, WIDTH).half()
    folder = republish(esm, tmp_path / "bank", ["ACGU", "GGGGG"], [4, 5], [rows], tmp_path)
    with pytest.raises(UserError, match=r"its index has 9 rows, its shards 10. Delete"):
        feature_bank.Bank(folder)
    folder = republish(esm, tmp_path / "bank", ["ACGU", "GGGGGG"], [4, 6], [rows[:4], rows[4:, :8]], tmp_path)
    with pytest.raises(UserError, match="Delete"):
        feature_bank.Bank(folder)


def test_sequence_with_too_few_rows_is_refused(esm, tmp_path):
    folder = republish(esm, tmp_path / "bank", ["ACGU", "GGGGG"], [4, 4], [torch.randn(8, WIDTH).half()], tmp_path)
    bank = feature_bank.Bank(folder)
    assert bank.locate("ACGU") == (0, 4)
    with pytest.raises(UserError, match=r"4 rows of 5 residues for GGGGG, which has 5. Delete"):
        bank.locate("GGGGG")


def test_sequence_of_another_length_in_the_index_is_refused(esm, tmp_path, monkeypatch):
    rows = [torch.randn(9, WIDTH).half()]
    with monkeypatch.context() as patch:
        patch.setattr(encoders, "residues", lambda text: len(text) + 1)
        folder = republish(esm, tmp_path / "bank", ["ACGU", "GGGGG"], [4, 5], rows, tmp_path)
    with pytest.raises(UserError, match=r"4 rows of 5 residues for ACGU, which has 4. Delete"):
        feature_bank.Bank(folder).locate("ACGU")


def test_sequence_that_a_bank_does_not_hold_and_row_beyond_it_are_refused(broken):
    bank = feature_bank.Bank(broken)
    with pytest.raises(UserError, match=rf"{broken}: no features of GGCC .* Delete"):
        bank.locate("GGCC")
    for row in (ROWS, -1):
        with pytest.raises(UserError, match=f"it has {ROWS} rows"):
            bank.rows(torch.tensor([0, row]))


def test_features_of_a_text_in_one_modality_are_not_taken_for_those_in_another(esm, tmp_path):
    """CCG is RNA, DNA and a protein; the encoder reads each with other tokens."""
    texts = ["CCG", "GACCA"]
    feature_bank.build(esm, texts, "dna", READING, {}, tmp_path / ".dna", tmp_path / "dna")
    assert open_source("features", "dna", tmp_path / "dna").features.locate("CCG") == (0, 3)
    with pytest.raises(UserError, match=rf"{tmp_path / 'dna'}: .*dna.*rna"):
        open_source("features", "rna", tmp_path / "dna")


@pytest.mark.parametrize("damage", ["flipped", "other data", "none"])
def test_command_refuses_a_wrong_bank_and_publishes_nothing(base, splice, esm, bank, tmp_path, capsys, damage):
    copy = shutil.copytree(bank, tmp_path / "features" / "bank")
    path = copy / feature_bank._name(0)
    whole = path.read_bytes()
    message = str(path)
    if damage == "flipped":
        path.write_bytes(whole[:5000] + bytes([whole[5000] ^ 16]) + whole[5001:])
    elif damage == "other data":
        copy = tmp_path / "other"
        build(esm, copy)
        message = f"{copy}: no features of"
    else:
        shutil.rmtree(copy)
        message = f"{copy}: not a checkpoint (no manifest.json); build it with: snakemake --cores 1 {copy}"
    asked = Run("sft", base, splice, tmp_path / "model", SFT, reads={"sequences": "features", "bank": copy})
    assert cli.main(asked.arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not published(tmp_path / "model")


# --- Live ---


def test_live_gives_the_rows_of_the_bank(esm, expected):
    live = LiveEncoder(encoders.load(esm, -1), "rna", READING)
    places = {text: live.locate(text) for text in (*TEXTS, *TEXTS[::-1])}
    assert sorted(count for _, count in places.values()) == sorted(map(len, TEXTS))
    rows = np.concatenate([np.arange(row, row + count) for row, count in places.values()])
    assert sorted(rows.tolist()) == list(range(ROWS))
    everything = torch.cat([expected[text] for text in places])
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    found = live.rows(torch.from_numpy(rows)[order])
    torch.testing.assert_close(found, everything[order], atol=4e-3, rtol=0)
    assert found.dtype == torch.float16


def test_live_encodes_each_sequence_of_a_call_once(esm, monkeypatch):
    live = LiveEncoder(encoders.load(esm, -1), "rna", READING)
    for text in TEXTS:
        live.locate(text)
    read_texts = []
    original = huggingface.Encoder.forward

    def forward(self, sequences, modality):
        read_texts.extend(sequences)
        return original(self, sequences, modality)

    monkeypatch.setattr(huggingface.Encoder, "forward", forward)
    live.rows(torch.tensor([0, 5, 1, 5, 4, 0]))  # ACGU, GGC
    assert sorted(read_texts) == ["ACGU", "GGC"]
