"""PNG files that say how they were made: text chunks, and XMP with the IPTC's digital source type.

The text is put between the header and the pixels of a PNG file whose other bytes stay as they are: without it the file is
the one whose SHA-256 is recorded.
"""

import io
from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape

from PIL.PngImagePlugin import PngInfo, putchunk

from darkroom.store.images import encode_png, open_picture
from darkroom.store.shardfile import iter_records, read_meta
from darkroom.store.sources import source_name
from darkroom.tables.kind import Kind

SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
CREATED, EDITED = "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"
_MADE_HERE = {"generated": CREATED, "edited": EDITED}  # by where a source is from
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER_BYTES = len(_SIGNATURE) + 25  # the header chunk, IHDR, has 13 bytes, and 12 around them
_SETTINGS = ("negative_prompt", "steps", "guidance", "true_cfg")
# What XML 1.0 cannot hold: most control characters, and two that are no characters.
_NOT_XML = dict.fromkeys([*(n for n in range(32) if n not in (9, 10, 13)), 0xFFFE, 0xFFFF], "\N{REPLACEMENT CHARACTER}")

_XMP = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
   <xmp:CreatorTool>{software}</xmp:CreatorTool>
   <Iptc4xmpExt:DigitalSourceType>{type}</Iptc4xmpExt:DigitalSourceType>
   <Iptc4xmpExt:AISystemUsed>{model}</Iptc4xmpExt:AISystemUsed>
   <Iptc4xmpExt:AISystemVersionUsed>{revision}</Iptc4xmpExt:AISystemVersionUsed>
   <Iptc4xmpExt:AIPromptInformation>{prompt}</Iptc4xmpExt:AIPromptInformation>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


def xmp_packet(type_: str, model: str, revision: str, prompt: str, software: str) -> str:
    """XMP that names the digital source type, the model, the prompt and the software."""
    values = {
        "type": SOURCE_TYPES + type_,
        "model": model,
        "revision": revision,
        "prompt": prompt,
        "software": software,
    }
    return _XMP.format_map({k: escape(v.translate(_NOT_XML), {"\r": "&#13;"}) for k, v in values.items()})


def with_text(png: bytes, texts: dict[str, str], xmp: str) -> bytes:
    """A PNG file with text chunks (iTXt, UTF-8) and XMP before its pixels; NUL, which ends a chunk's text, is U+FFFD."""
    info = PngInfo()
    for name, text in (texts | {"XML:com.adobe.xmp": xmp}).items():
        info.add_itxt(name, text.replace("\0", "\N{REPLACEMENT CHARACTER}"))
    chunks = io.BytesIO()
    for chunk in info.chunks:
        putchunk(chunks, chunk[0], chunk[1])
    return png[:_HEADER_BYTES] + chunks.getvalue() + png[_HEADER_BYTES:]


def as_png(data: bytes, name: str) -> bytes:
    """An image file as PNG; one that is a PNG file already stays as it is."""
    return data if data.startswith(_SIGNATURE) else encode_png(open_picture(data, name).image)


class Marker:
    """Turns pictures of a kind into PNG files, and into those that say how they were made where `on`.

    kind: of the pictures; models: the names of those that make them and what they start from, by kind. Pictures that the user gave
    are not marked.
    """

    def __init__(self, kind: Kind, models: Mapping[str, str | None], on: bool):
        self.kind, self.models, self.on = kind, models, on
        self.shard: str | None = None

    def image(self, shard: str, record: dict[str, Any], data: bytes) -> bytes:
        """The PNG file of an image; record: its line of the final table."""
        png = as_png(data, record["key"])
        if not self.on or record["origin"] != "generated":
            return png
        self._open(shard)
        edits_given = self.kind.has_sources and record["source_origin"] != "generated"
        model = self.models.get(self.kind.name)
        return _marked(png, record, model, self.meta, EDITED if edits_given else CREATED)

    def source(self, shard: str, record: dict[str, Any], data: bytes) -> bytes:
        """The PNG file of an edit's source, marked where it is one image of this run."""
        png = as_png(data, record["source_sha256"])
        if not self.on or record["source_origin"] not in _MADE_HERE or record["source_parts"] is not None:
            return png
        self._open(shard)
        kind = record["source_kind"]
        made, meta = self.sources[kind, record["source_name"]]
        type_ = _MADE_HERE[record["source_origin"]]
        # The image may have been made again since, with other pixels than this one was made from.
        return _marked(png, made | {"sha256": record["source_sha256"]}, self.models.get(kind), meta, type_)

    def _open(self, shard: str) -> None:
        """Learn of a shard what its pictures were made with, and of what images of this run it starts from."""
        if shard == self.shard:
            return
        self.shard, self.meta = shard, read_meta(self.kind.image_file(shard))
        self.sources: dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any]]] = {}
        if not self.kind.has_sources:
            return
        columns = ["source_name", "source_origin"]
        found = iter_records(self.kind.image_file(shard), columns)
        wanted = {record["source_name"] for record in found if record["source_origin"] in _MADE_HERE}
        columns = ["key", "row", "item", "sample", "prompt", "seed", *_SETTINGS]
        for kind, paths in self.kind.files.sources(shard).items():
            for path in paths:
                meta = read_meta(path)
                for record in iter_records(path, columns):
                    name = source_name({part: record[part] for part in ("row", "item", "sample")})
                    if name in wanted:
                        self.sources[kind, name] = (record, meta)


def _marked(png: bytes, record: dict[str, Any], model: str | None, meta: dict[str, Any], type_: str) -> bytes:
    identity = meta["recipe"]["model"]
    revision = identity.rpartition("@")[2]  # of a folder: folder:<digest of its files>
    packages = ", ".join(f"{name} {version}" for name, version in sorted(meta.get("versions", {}).items()))
    software = f"Darkroom ({packages})"
    texts = {"prompt": record["prompt"], "model": model or identity, "revision": revision}
    texts |= {name: str(record[name]) for name in ("seed", "key", "sha256", *_SETTINGS) if record[name] is not None}
    texts["Software"] = software
    return with_text(png, texts, xmp_packet(type_, texts["model"], revision, record["prompt"], software))
