"""Write chunks of a project into a prompt, in a form that the model knows."""

from collections.abc import Sequence
from dataclasses import replace

from common.source_code import COMMENTS
from completion.cursor import Cursor
from completion.prompt import Prompt
from completion.repository.chunks import Chunk
from completion.tokens import Vocabulary

# The special words before a repository's name and before a file: of Qwen-Coder (arXiv:2409.12186) and of StarCoder 2.
FAMILIES = (("<|repo_name|>", "<|file_sep|>"),)
REPOSITORY_NAME = "project"  # the same name for every repository


def with_context(prompt: Prompt, vocabulary: Vocabulary, cursor: Cursor, room: int) -> Prompt:
    """Return the prompt with the cursor's chunks before it. If they do not all fit, the last ones are left out.

    They come after the tokens that the tokenizer itself puts before a text, and before the language's control word.

    Args:
        room: the most tokens that the chunks may take.
    """
    chunks = list(cursor.context)
    while chunks and len(ids := context_ids(vocabulary, chunks, cursor.language, cursor.path)) > room:
        chunks.pop()
    if not chunks:
        return prompt
    begin = len(vocabulary.start(""))
    return replace(prompt, ids=[*prompt.ids[:begin], *ids, *prompt.ids[begin:]])


def context_ids(vocabulary: Vocabulary, chunks: Sequence[Chunk], language: str, path: str) -> list[int]:
    """Return all tokens before the prompt: the chunks, and if the model knows such words, the completed file's name."""
    ids = [token for chunk in chunks for token in _chunk_ids(vocabulary, chunk, language)]
    if words := _repository_words(vocabulary):
        name, file = ([word] for word in words)
        repository, completed = (vocabulary.encode(f"{text}\n") for text in (REPOSITORY_NAME, path or "main"))
        return [*name, *repository, *ids, *file, *completed]
    return ids


def _chunk_ids(vocabulary: Vocabulary, chunk: Chunk, language: str) -> list[int]:
    text = chunk.text if chunk.text.endswith("\n") else chunk.text + "\n"
    if words := _repository_words(vocabulary):
        return [words[1], *vocabulary.encode(f"{chunk.path}\n{text}")]
    mark = COMMENTS[language]
    return vocabulary.encode("".join(f"{mark} {line}\n" for line in [chunk.path, *text.splitlines()]) + "\n")


def _repository_words(vocabulary: Vocabulary) -> list[int] | None:
    for words in FAMILIES:
        if None not in (ids := vocabulary.ids_of(words)):
            return ids
    return None
