"""A place in a source file where code is to be written, and all that the model may see of the project."""

from dataclasses import dataclass

from completion.repository.chunks import Chunk


@dataclass(frozen=True)
class Cursor:
    """The cursor in a source file.

    Attributes:
        prefix, suffix: the code before and after the cursor.
        path: of the file, below the project's folder; may be empty. Some models' prompts contain it.
        context: chunks of the project. The model reads as many of them as fit before the prefix.
    """

    prefix: str
    suffix: str = ""
    language: str = "python"
    path: str = ""
    context: tuple[Chunk, ...] = ()
