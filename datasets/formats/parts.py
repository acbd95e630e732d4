"""Content parts of a message, read one by one: text is joined, images are named by their content, the rest is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flywheel.datasets.formats.records import ReadContext, compact
from flywheel.messages import Image


class ContentParts:
    """The parts of one message so far. `whole` turns false at the first that students could not read."""

    def __init__(self, source: ReadContext) -> None:
        self._source = source
        self._texts: list[str] = []
        self._kept: list[Any] = []
        self._images: list[Image] = []
        self.whole = True

    def add_text(self, text: str) -> None:
        self._texts.append(text)
        self._kept.append({"type": "text", "text": text})

    def add_image(self, read: Callable[[], Image]) -> None:
        """An image, or the words that stand in its place where it cannot be read."""
        image = self._source.image(read)
        if isinstance(image, Image):
            self._images.append(image)
            self._kept.append({"type": "image", "sha256": image.sha256})
        else:
            self.add_text(image)
            self.whole = False

    def keep(self, part: Any, kind: object) -> None:
        """A part of a kind that is not understood: kept as it is, and counted."""
        self._source.count_unread(f"a content part of type {kind or 'unknown'}")
        self._kept.append(part)
        self.whole = False

    @property
    def text(self) -> str:
        return "\n".join(self._texts)

    @property
    def json(self) -> str | None:
        """The parts as JSON, or None where one text is all there is."""
        only_text = len(self._kept) == len(self._texts) <= 1
        return None if only_text else compact(self._kept)

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(self._images)
