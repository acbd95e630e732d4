"""Images beside a record: named by their content under `images/`, read only from below the record's folder."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from flywheel.datasets.formats.records import RecordError
from flywheel.trajectory import Image

_SUFFIX = {"image/png": "png", "image/jpeg": "jpg", "image/gif": "gif", "image/webp": "webp"}


def image_path(image: Image) -> str:
    """Where an export puts an image, relative to its record."""
    return f"images/{image.sha256}.{_SUFFIX.get(image.media_type, 'bin')}"


def image_at(folder: Path, path: str, media_type: str) -> Image:
    """The image that a record names. Raises `RecordError` for one that is not there or lies elsewhere."""
    target = (folder / path).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise RecordError(f"image {path} lies outside the record's folder")
    try:
        return Image(media_type, target.read_bytes())
    except (OSError, ValueError) as error:
        raise RecordError(f"image {path} cannot be read") from error


def image_in(url: str) -> Image:
    """The image of a data URL."""
    head, comma, body = url.partition(",")
    if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
        raise RecordError("an image that is not a base64 data URL")
    try:
        return Image(head.removeprefix("data:").removesuffix(";base64"), base64.b64decode(body, validate=True))
    except binascii.Error as error:
        raise RecordError("an image that is not base64") from error


def data_url(image: Image) -> str:
    return f"data:{image.media_type};base64,{base64.b64encode(image.data).decode()}"
