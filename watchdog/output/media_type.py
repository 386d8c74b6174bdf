"""Find the media type of a file, and write its name in a header."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

from ..system.pattern import pattern

if TYPE_CHECKING:
    import mimetypes

PLAIN_TYPE = "text/plain"
ZIP_TYPE = "application/zip"
JSON_TYPE = "application/json"
BYTES_TYPE = "application/octet-stream"
# A compressed file has the media type of its compression format, because the caller gets the compressed bytes.
_TYPES_OF_PACKINGS = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
    "compress": "application/x-compress",
}
# Common types that Python does not know, and all types that differ between Python 3.11 and 3.14. With these an answer
# has the same type on each Python.
_MORE_TYPES = {
    ".7z": "application/x-7z-compressed",
    ".arrow": "application/vnd.apache.arrow.file",
    ".avi": "video/x-msvideo",
    ".avif": "image/avif",
    ".dcm": "application/dicom",
    ".deb": "application/x-debian-package",
    ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ".emf": "image/emf",
    ".eot": "application/vnd.ms-fontobject",
    ".epub": "application/epub+zip",
    ".fits": "application/fits",
    ".flac": "audio/flac",
    ".g3": "image/g3fax",
    ".geojson": "application/geo+json",
    ".glb": "model/gltf-binary",
    ".gltf": "model/gltf+json",
    ".gz": "application/gzip",
    ".hdf5": "application/x-hdf5",
    ".jp2": "image/jp2",
    ".jpm": "image/jpm",
    ".jpx": "image/jpx",
    ".js": "text/javascript",
    ".jsonl": "application/jsonl",
    ".m4a": "audio/mp4",
    ".m4v": "video/x-m4v",
    ".markdown": "text/markdown",
    ".md": "text/markdown",
    ".mjs": "text/javascript",
    ".mk3d": "video/matroska-3d",
    ".mka": "audio/matroska",
    ".mkv": "video/x-matroska",
    ".odg": "application/vnd.oasis.opendocument.graphics",
    ".odp": "application/vnd.oasis.opendocument.presentation",
    ".ods": "application/vnd.oasis.opendocument.spreadsheet",
    ".odt": "application/vnd.oasis.opendocument.text",
    ".ogg": "audio/ogg",
    ".ogv": "video/ogg",
    ".ogx": "application/ogg",
    ".otf": "font/otf",
    ".parquet": "application/vnd.apache.parquet",
    ".php": "application/x-httpd-php",
    ".pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    ".rar": "application/vnd.rar",
    ".rpm": "application/x-rpm",
    ".rst": "text/x-rst",
    ".rtf": "text/rtf",
    ".sqlite": "application/vnd.sqlite3",
    ".sqlite3": "application/vnd.sqlite3",
    ".stl": "model/stl",
    ".t38": "image/t38",
    ".tfx": "image/tiff-fx",
    ".ttf": "font/ttf",
    ".wav": "audio/wav",
    ".weba": "audio/webm",
    ".webp": "image/webp",
    ".wmf": "image/wmf",
    ".wmv": "video/x-ms-wmv",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".zst": "application/zstd",
}
_PLAIN_NAME = pattern(r"[A-Za-z0-9._-]+")
_VISIBLE_ASCII = "".join(map(chr, range(0x21, 0x7F)))


def guessed_type(name: str) -> str:
    """Return the media type of a file name's ending, or ``application/octet-stream`` if it is not known.

    This uses Python's own table and not ``/etc/mime.types``, so answers do not depend on installed packages.
    """
    if "." not in name:
        return BYTES_TYPE
    # The "./" keeps names such as "data:x" from being read as URLs.
    media_type, packing = _mime_types().guess_type("./" + name.rpartition("/")[2])
    if packing is not None:
        return _TYPES_OF_PACKINGS.get(packing, BYTES_TYPE)
    return media_type or BYTES_TYPE


def ending_of(media_type: str) -> str:
    """Return the usual ending of file names for a media type: ``.txt``; an empty text if the type is not known."""
    if media_type in (PLAIN_TYPE, ZIP_TYPE, JSON_TYPE):
        return {PLAIN_TYPE: ".txt", ZIP_TYPE: ".zip", JSON_TYPE: ".json"}[media_type]
    return "" if media_type == BYTES_TYPE else _mime_types().guess_extension(media_type) or ""


@functools.cache
def _mime_types() -> mimetypes.MimeTypes:
    import mimetypes

    types = mimetypes.MimeTypes()
    for ending, media_type in _MORE_TYPES.items():
        types.add_type(media_type, ending)
    return types


@functools.lru_cache(maxsize=64)
def encoded_name(name: str) -> str:
    """Return a name as a header value.

    Visible ASCII characters except ``%`` stay unchanged. Each byte of all other characters becomes ``%XX``.
    ``urllib.parse.unquote_to_bytes`` returns the bytes of the name, which may be UTF-8 or not.
    """
    if _PLAIN_NAME.fullmatch(name):
        return name
    from urllib.parse import quote_from_bytes

    return quote_from_bytes(os.fsencode(name), safe=_VISIBLE_ASCII.replace("%", ""))
