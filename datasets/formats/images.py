"""Images that a record refers to: stored by content under `images/`, read only from inside the record's folder."""

from __future__ import annotations

import base64
import binascii
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flywheel.errors import RecordError
from flywheel.messages import Image

LARGEST = 32 << 20
"""Bytes of an image."""
_SUFFIX = {"image/png": "png", "image/jpeg": "jpg", "image/gif": "gif", "image/webp": "webp"}


class UnreadableImageError(RecordError):
    """An image that is missing or damaged: its record can do without."""


def image_path(image: Image) -> str:
    """Where an export puts an image, relative to its record."""
    return f"images/{image.sha256}.{_SUFFIX.get(image.media_type, 'bin')}"


def image_at(folder: Path, path: str) -> Image:
    """The image that a record names.

    Raises `UnreadableImageError` for one that is missing, too large or no image, and `RecordError` for one that lies
    outside the record's folder or is a pipe, a device or a link to elsewhere.
    """
    if "\0" in path:
        raise UnreadableImageError("an image whose path holds a NUL")
    target = (folder / path).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise RecordError(f"image {path} lies outside the record's folder")
    try:
        descriptor = os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise UnreadableImageError(f"image {path} cannot be read") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise RecordError(f"image {path} is no regular file")
        data = file.read(LARGEST + 1)
    return _image(data, f"image {path}")


def image_in(url: str) -> Image:
    """The image of a data URL. Raises `UnreadableImageError` where there is none."""
    head, comma, body = url.partition(",")
    if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
        raise UnreadableImageError("an image that is not a base64 data URL")
    if len(body) > LARGEST * 4 // 3 + 4:
        raise UnreadableImageError(f"an image of more than {LARGEST >> 20} MiB")
    try:
        return _image(base64.b64decode(body, validate=True), "an image in the record")
    except (binascii.Error, ValueError) as error:
        raise UnreadableImageError("an image that is not base64") from error


def media_type_of(data: bytes) -> str | None:
    """What kind of image the bytes are, by how they begin; None for anything else."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    return "image/webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def _image(data: bytes, name: str) -> Image:
    if len(data) > LARGEST:
        raise UnreadableImageError(f"{name} has more than {LARGEST >> 20} MiB")
    media_type = media_type_of(data)
    if media_type is None:
        raise UnreadableImageError(f"{name} is not PNG, JPEG, GIF or WebP")
    return Image(media_type, data)


def with_images(parts: Sequence[Any], images: Mapping[str, Image]) -> list[Any]:
    """Content parts with the images that they name in place, in OpenAI's form."""
    return [
        {"type": "image_url", "image_url": {"url": data_url(images[part["sha256"]])}}
        if isinstance(part, dict) and part.get("type") == "image" and part.get("sha256") in images
        else part
        for part in parts
    ]


def data_url(image: Image) -> str:
    return f"data:{image.media_type};base64,{base64.b64encode(image.data).decode()}"
