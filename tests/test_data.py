"""SrcCodeDataset: the rows it makes, the cache it keeps, and the rows it refuses."""

import json

import numpy as np
import pytest
import torch

from common.command import InputError
from data import SrcCodeDataset, TokenBatches


def write_rows(path, rows, **json_options):
    path.write_text("".join(json.dumps(row, **json_options) + "\n" for row in rows))
    return path


ROWS = [
    {"token_ids": [7, 8, 9], "label": "Python", "path": "a[1].py"},
    {"token_ids": [11], "label": "Java"},
    {"token_ids": list(range(100, 200)), "label": "python", "path": "b.py"},
]


def test_a_row_is_control_word_ids_eos_cut_to_length(model, tmp_path):
    dataset = SrcCodeDataset(write_rows(tmp_path / "x.jsonl", ROWS), model)
    python, java, eos, pad = model.control_id("python"), model.control_id("java"), model.eos_token_id, model.pad_id
    assert dataset.tokens.shape == (3, 64)
    assert dataset.tokens.dtype == np.uint16
    assert dataset.lengths.tolist() == [5, 3, 64]
    assert dataset[0] == {"input_ids": [python, 7, 8, 9, eos]}
    assert dataset[1] == {"input_ids": [java, 11, eos]}
    assert dataset[2] == {"input_ids": [python, *range(100, 163)]}
    assert (dataset.tokens[0, 5:] == pad).all()


def test_gathered_batches_mark_padding_in_the_labels(model, tmp_path):
    dataset = SrcCodeDataset(write_rows(tmp_path / "x.jsonl", ROWS), model)
    ids, labels = TokenBatches(dataset, model.pad_id, "cpu").gather(torch.tensor([1, -1, 2]))
    assert ids.shape == labels.shape == (3, 64)
    assert labels[0].tolist() == [*dataset[1]["input_ids"], *[-100] * 61]
    assert (labels[1] == -100).all()
    assert torch.equal(ids[2], labels[2])
    assert ids.min() >= 0


def test_large_token_ids_survive_the_signed_view(model, tmp_path):
    model.gpt.resize_token_embeddings(40_001)
    row = {"token_ids": [40_000, 32_768, 32_767], "label": "Python"}
    dataset = SrcCodeDataset(write_rows(tmp_path / "x.jsonl", [row]), model)
    ids, _ = TokenBatches(dataset, model.pad_id, "cpu").gather(torch.tensor([0]))
    assert ids[0, 1:4].tolist() == row["token_ids"]


def test_rows_in_another_json_spelling_read_the_same(model, tmp_path):
    spelled = write_rows(tmp_path / "spelled.jsonl", ROWS)
    compact = write_rows(
        tmp_path / "compact.jsonl", [dict(reversed(row.items())) for row in ROWS], separators=(",", ":")
    )
    assert (SrcCodeDataset(spelled, model).tokens == SrcCodeDataset(compact, model).tokens).all()


def test_a_real_dataset_reads_as_json_reads_it(model, dataset_folder):
    dataset = SrcCodeDataset(dataset_folder / "train.jsonl", model)
    with (dataset_folder / "train.jsonl").open() as file:
        rows = [json.loads(line)["token_ids"] for line in file]
    assert len(dataset) == len(rows) > 50
    for i in range(len(rows)):
        assert dataset[i]["input_ids"][1:-1] == rows[i]


def test_the_cache_is_used_again_and_a_stale_or_torn_one_is_not(model, tmp_path):
    path, cache = write_rows(tmp_path / "x.jsonl", ROWS), tmp_path / "cache"

    def load():
        return SrcCodeDataset(path, model, cache).tokens[:, 1].tolist()

    assert load() == [7, 11, 100]
    matrix = np.load(cache / "tokens.npy", mmap_mode="r+")
    matrix[0, 1] = 99  # a mark that only the cache holds
    matrix.flush()
    assert load() == [99, 11, 100]

    path.touch()  # another date, the same content
    assert load() == [99, 11, 100]
    model.max_seq_length = 32
    assert load() == [7, 11, 100]
    write_rows(path, ROWS[::-1])
    assert load() == [100, 11, 7]
    tokens = (cache / "tokens.npy").read_bytes()
    (cache / "tokens.npy").write_bytes(tokens[: len(tokens) // 2])
    assert load() == [100, 11, 7]
    (cache / "meta.json").write_text("{")
    assert load() == [100, 11, 7]


BAD_ROWS = {
    '{"token_ids": [1, 2': "torn",
    '{"token_ids": [1, 99999], "label": "Python"}': "99999 is outside",
    '{"token_ids": [1, -2], "label": "Python"}': "-2 is outside",
    '{"token_ids": [1, 2.5], "label": "Python"}': "not a list of integers",
    '{"token_ids": [1, true], "label": "Python"}': "not a list of integers",
    '{"token_ids": "12", "label": "Python"}': "not a list of integers",
    '{"token_ids": [1], "label": "Cobol"}': "Cobol",
    '{"token_ids": [1]}': "label",
    '{"token_ids": [1, 2, ], "label": "Python"}': "torn",
    '{"token_ids": [1, , 2], "label": "Python"}': "torn",
    '{"token_ids": [01, 2], "label": "Python"}': "torn",
    '{"token_ids": [1, 00], "label": "Python"}': "torn",
    '{"token_ids": [+1, 2], "label": "Python"}': "torn",
    '{"token_ids": [18446744073709551617, 2], "label": "Python"}': "18446744073709551617 is outside",
    '{"token_ids": [1], "label": "Python", "path": "a.py", "token_ids": "x"}': "not a list of integers",
    "[1, 2]": "not an object",
    "[" * 100_000: "torn",
    "": "empty line",
}


@pytest.mark.parametrize("line", BAD_ROWS, ids=lambda line: line[:60])
def test_a_bad_row_is_named_by_file_and_line(model, tmp_path, line):
    path = tmp_path / "x.jsonl"
    good = '{"token_ids": [1, 2], "label": "Python", "path": "a.py"}\n'
    path.write_text(good * 2 + line + "\n" + good)
    with pytest.raises(InputError) as caught:
        SrcCodeDataset(path, model, tmp_path / "cache")
    message = str(caught.value)
    assert f"{path}:3: " in message
    assert BAD_ROWS[line] in message
    assert "\n" not in message
    assert not (tmp_path / "cache" / "meta.json").exists()


def test_an_empty_file_and_another_tokenizer_are_refused(model, tmp_path, dataset_folder):
    (tmp_path / "x.jsonl").touch()
    with pytest.raises(InputError, match="no rows"):
        SrcCodeDataset(tmp_path / "x.jsonl", model)
    meta = json.loads((dataset_folder / "meta.json").read_text())
    meta["tokenizer"] |= {"name": "other-words", "fingerprint": "0" * 16}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(InputError, match="other-words") as caught:
        SrcCodeDataset(write_rows(tmp_path / "x.jsonl", ROWS), model)
    assert model.gpt.config.name_or_path in str(caught.value)
