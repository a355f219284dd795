"""A form with a file, read as it comes: the file's bytes go where they are to be, and only the fields are held."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from octavo.errors import BadRequest
from octavo_serve.api.bounds import MAX_NAME

MAX_PARTS = 16
FILE = "file"


@dataclass(slots=True)
class _Part:
    name: str = ""
    filename: str = ""
    value: bytearray = field(default_factory=bytearray)


class Form:
    """Reads one.

    Args:
        media_type: of the body, as its header says it.
        write: takes the file's bytes.

    Attributes:
        fields: what is not the file, by name.
        filename: as the client calls it; None: no file has come.

    Raises:
        BadRequest: the body is no form.
    """

    def __init__(self, media_type: str, write: Callable[[bytes], None]) -> None:
        kind, options = parse_options_header(media_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not 0 < len(boundary) <= 70:  # RFC 2046's bound
            raise BadRequest("a file is sent as a form: multipart/form-data, with a boundary")
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self._write = write
        self._parts = 0
        self._part = _Part()
        self._header = bytearray(), bytearray()
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begin,
                "on_part_data": self._part_data,
                "on_part_end": self._part_end,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_end": self._end,
            },
        )

    def feed(self, data: bytes) -> None:
        """Read more of the body.

        Raises:
            BadRequest: it is not as a form should be; what `write` does.
        """
        try:
            self._parser.write(data)
        except MultipartParseError as error:
            raise BadRequest(f"the form cannot be read: {error}") from None

    def close(self) -> None:
        """All has come.

        Raises:
            BadRequest: the form was cut, or there is no file in it.
        """
        if not self._ended:
            raise BadRequest("the form ends too early")
        if self.filename is None:
            raise BadRequest("the form has no file: send it as the part `file`, with a filename", FILE)

    def _part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise BadRequest(f"the form has more than {MAX_PARTS} parts")
        self._part = _Part()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def _header_end(self) -> None:
        name, value = (bytes(part) for part in self._header)
        self._header = bytearray(), bytearray()
        if name.lower() == b"content-disposition":
            options = parse_options_header(value)[1]
            self._part.name = options.get(b"name", b"").decode(errors="replace")
            given = options.get(b"filename", b"").decode(errors="replace")
            self._part.filename = given.replace("\\", "/").rpartition("/")[2][:MAX_NAME]  # whoever saves it under it

    def _headers_finished(self) -> None:
        if self._part.name != FILE:
            return
        if self.filename is not None:
            raise BadRequest("the form has more than one file: send one", FILE)
        self.filename = self._part.filename or FILE

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part.name == FILE:
            self._write(data[start:end])
            return
        self._part.value += data[start:end]
        if len(self._part.value) > MAX_NAME:
            name = self._part.name[:MAX_NAME]
            raise BadRequest(f"the field {name!r:.80} has more than {MAX_NAME} bytes", name)

    def _part_end(self) -> None:
        if self._part.name != FILE:
            self.fields[self._part.name[:MAX_NAME]] = self._part.value.decode(errors="replace")

    def _end(self) -> None:
        self._ended = True
