"""What stands beside the files of an export: a README (for the Hugging Face hub, a data set card) and a Croissant description."""

import json
from collections.abc import Iterable
from typing import Any

import yaml

from darkroom.exports import imagefolder, parquet, preferences
from darkroom.exports.base import Export
from darkroom.exports.folder import picture_folders
from darkroom.identity import KEY_LENGTH
from darkroom.models.licences import HUB
from darkroom.store.shardfile import DTYPES, Type
from darkroom.tables.kind import Kind

_LANGUAGE = {"@container": "@language"}
# The JSON-LD context that Croissant 1.1 prescribes.
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "name": _LANGUAGE,
    "description": _LANGUAGE,
    "data": {"@id": "cr:data", "@type": "@json"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
} | {
    term: f"cr:{term}"
    for term in (
        "arrayShape citeAs column containedIn equivalentProperty excludes extract field fileObject fileProperty fileSet"
        " format includes isArray isLiveDataset jsonPath key md5 parentField path recordSet references regex repeated"
        " replace samplingRate separator source subField transform unArchive value"
    ).split()
}
_CROISSANT_TYPES = {"text": "sc:Text", "int": "cr:Int64", "float": "cr:Float64", "bool": "sc:Boolean"}
_TAR, _PARQUET, _LINES = "application/x-tar", "application/x-parquet", "application/jsonlines"

_LOADING = {
    "folder": "Every line of {files} is one of the original rows; its images are paths below this folder.",
    "imagefolder": 'datasets.load_dataset("imagefolder", data_dir="{kind}", split="train")',
    "parquet": 'datasets.load_dataset(".", "{kind}", split="train")',
    "webdataset": 'webdataset.WebDataset(sorted(glob.glob("{kind}/*.tar")), shardshuffle=False).decode("pil")',
    "preferences": 'datasets.load_dataset(".", "{kind}", split="train")',
}
_CONTENT = {
    "folder": "the rows that the images were made for, in their own format, with PNG files",
    "imagefolder": "PNG files with a metadata.jsonl",
    "parquet": "Parquet files with pictures inside",
    "webdataset": "tar files with a PNG, a text (the prompt) and a JSON file for each image",
    "preferences": "pairs of images of one prompt, the better one told by a score",
}


def describe(export: Export, counts: dict[str, int], noted: dict[str, str]) -> dict[str, str]:
    """README.md and croissant.json of an export; counts: lines by kind; noted: SHA-256 of files named one by one."""
    full = [kind for kind in export.kinds if counts[kind.name]]
    croissant = json.dumps(_croissant(export, full, counts, noted), indent=2, ensure_ascii=False) + "\n"
    return {"README.md": _readme(export, full, counts), "croissant.json": croissant}


def _readme(export: Export, full: list[Kind], counts: dict[str, int]) -> str:
    header: dict[str, Any] = {
        "pretty_name": export.settings.name,
        "license": export.settings.licence or "unknown",
    }
    tasks = ("image-to-image" if kind.has_sources else "text-to-image" for kind in full)
    header["task_categories"] = list(dict.fromkeys(tasks))
    header["tags"] = ["synthetic", "image", *(["preference"] if export.format == "preferences" else [])]
    if export.format != "folder" and full:
        header["configs"] = [
            {"config_name": kind.name, "data_files": [{"split": "train", "path": _pattern(export, kind)}]}
            | ({"default": True} if kind is full[0] else {})
            for kind in full
        ]
        if export.format != "imagefolder":  # whose loader takes its columns from metadata.jsonl
            header["dataset_info"] = [
                {"config_name": kind.name, "features": _features(_all_columns(export, kind).items())} for kind in full
            ]
    lines = ["---", yaml.safe_dump(header, sort_keys=False, allow_unicode=True).rstrip(), "---", ""]
    lines += [f"# {export.settings.name}", "", f"Synthetic images: {_CONTENT[export.format]}. Made by Darkroom.", ""]
    what = {"folder": "rows", "preferences": "pairs"}.get(export.format, "images")
    lines += [f"- {kind.name}: {counts[kind.name]} {what}" for kind in export.kinds]
    lines += ["", "## How they were made", "", "| stage | model | licence of the model |", "|---|---|---|"]
    for model in export.models:
        link = f"[{model.licence.name}]({model.licence.link})" if model.licence.link else model.licence.name
        name = f"[{model.name}]({HUB}/{model.name})" if "/" in model.name else model.name
        lines.append(f"| {model.section} | {name} | {link} |")
    limited = {m.licence.name: m.licence for m in export.models if m.licence.limits and m.makes_pictures}
    lines += [""] + [f"Of {name}, {licence.limits}." for name, licence in limited.items()]
    lines += [
        "The licence of a model is not the licence of its pictures: see what it says of them before you train on, share or"
        " sell them.",
        "",
        "## What was kept",
        "",
    ]
    for kind in export.kinds:
        least = ", ".join(f"{name} at least {value:g}" for name, value in export.select.least_of(kind.name).items())
        cuts = [f"{key} {said}" for key, said in export.select.of(kind.name).cuts.items()]
        lines.append(f"- {kind.name}: {'; '.join([least, *cuts] if least else cuts) or 'every image that was made'}")
    if export.select.per_row:
        lines.append(f"- of each prompt, the best {export.select.per_row}")
    if export.by_label:
        lines.append("- what a person rejected was left out, and what a person accepted was kept, whatever its scores")
    if export.format == "preferences":
        for kind in export.kinds:
            by = preferences.deciding_score(export, kind)
            won = f" of any model; here, where the best is by {kind.model}" if kind.model else ""
            lines.append(f"- {kind.name}: the best of what was kept against the worst sample{won}, by {by}")
    lines += ["", "## Hashes", "", _hashes(export), "", "## How to load it", ""]
    if export.format == "folder":
        lines.append(_LOADING["folder"].format(files=", ".join(path.name for path in export.rows.values())))
    else:
        lines += [f"    {_LOADING[export.format].format(kind=kind.name)}" for kind in full]
    return "\n".join(lines) + "\n"


def _hashes(export: Export) -> str:
    if export.format == "preferences":
        original = "`sha256_0` and `sha256_1` are of the bytes in `jpg_0` and `jpg_1`."
    elif export.format == "parquet":
        original = "The column `sha256` is of the bytes in `image`."
    elif export.settings.provenance:
        original = (
            "The `sha256` in a record, and in a PNG file's text, is of the file as it was stored, a PNG file without that text (prompt,"
            " model, revision, seed, key, software, and XMP with the IPTC digital source type). The pixels are the same."
        )
    else:
        original = "The `sha256` in a record is of the picture's file as it was stored."
    return f"`SHA256SUMS` has the hash of every file here (`sha256sum -c SHA256SUMS`). {original}"


def _pattern(export: Export, kind: Kind) -> str:
    return {"imagefolder": f"{kind.name}/**", "webdataset": f"{kind.name}/*.tar"}.get(
        export.format, f"{kind.name}/*.parquet"
    )


def _all_columns(export: Export, kind: Kind) -> dict[str, Type]:
    """The columns that `datasets` finds, and their types."""
    if export.format == "preferences":
        return preferences.columns(export, kind)
    if export.format == "parquet":
        return parquet.columns(export, kind)
    sources: dict[str, Type] = {"source.png": "picture"} if kind.has_sources else {}
    record = {"struct": [[name, type_] for name, type_ in export.described_columns(kind).items()]}
    return {"png": "picture"} | sources | {"txt": "text", "json": record, "__key__": "text", "__url__": "text"}


def _features(columns: Iterable[tuple[str, Type]]) -> list[dict[str, Any]]:
    """Columns in the form of a data set card's `dataset_info`."""
    return [{"name": name} | _feature(type_) for name, type_ in columns]


def _feature(type_: Type) -> dict[str, Any]:
    if isinstance(type_, str):
        return {"dtype": (DTYPES | {"picture": "image"})[type_]}
    if "struct" in type_:
        return {"struct": _features(type_["struct"])}
    of = _feature(type_["list"])  # which has no name: of a number or an object, what it says stands alone
    return {"list": of.get("dtype") or of.get("struct") or of}


def _croissant(export: Export, full: list[Kind], counts: dict[str, int], noted: dict[str, str]) -> dict[str, Any]:
    models = ", ".join(f"{m.name} ({m.licence.name})" for m in export.models if m.makes_pictures)
    files: list[dict[str, Any]] = []
    for name, sha256 in noted.items():
        entry = {"@type": "cr:FileObject", "@id": name, "name": name, "contentUrl": name, "sha256": sha256}
        files.append(entry | {"encodingFormat": _encoding(name)})
    records: list[dict[str, Any]] = []
    for kind in full:
        of_kind = [name for name in noted if name.startswith(f"{kind.name}/")]
        describe = {
            "folder": _folder_records,
            "imagefolder": _imagefolder_records,
            "webdataset": _tar_records,
        }.get(export.format, _parquet_records)
        sets, fields = describe(export, kind, of_kind)
        files += sets
        what = "pairs of images" if export.format == "preferences" else "images"
        record = {"@type": "cr:RecordSet", "@id": kind.name, "name": kind.name, "field": fields}
        records.append(record | {"description": f"{counts[kind.name]} {what}"})
    described = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": export.settings.name,
        "description": f"Synthetic images: {_CONTENT[export.format]}. Generator models and their licences: {models}.",
        "version": "1.0.0",
    }
    if export.settings.licence:
        described["license"] = export.settings.licence
    return described | {"distribution": files, "recordSet": records}


def _encoding(name: str) -> str:
    if name.endswith(".gz"):
        return "application/gzip"
    suffix = name[name.rfind(".") :]
    return {".tar": _TAR, ".parquet": _PARQUET, ".csv": "text/csv"}.get(suffix, _LINES)


def _field(kind: Kind, name: str, type_: str, source: dict[str, Any]) -> dict[str, Any]:
    field = {"@type": "cr:Field", "@id": f"{kind.name}/{name}", "name": name, "dataType": type_}
    return field | {"source": source}


def _file_set(name: str, encoding: str, pattern: str) -> dict[str, Any]:
    return {"@type": "cr:FileSet", "@id": name, "name": name, "encodingFormat": encoding, "includes": pattern}


def _picture_fields(kind: Kind, files: str) -> list[dict[str, Any]]:
    """The name and the content of a picture, of each file in a set."""
    source = {"fileSet": {"@id": files}}
    return [
        _field(kind, "filename", "sc:Text", source | {"extract": {"fileProperty": "filename"}}),
        _field(kind, "image", "sc:ImageObject", source | {"extract": {"fileProperty": "content"}}),
    ]


def _folder_records(export: Export, kind: Kind, files: list[str]) -> tuple[list[Any], list[Any]]:
    name = f"{kind.name}-pictures"
    return [_file_set(name, "image/png", f"{picture_folders(kind)[0]}/*/*.png")], _picture_fields(kind, name)


def _imagefolder_records(export: Export, kind: Kind, files: list[str]) -> tuple[list[Any], list[Any]]:
    fields = [
        _field(kind, name, _CROISSANT_TYPES[type_], {"fileObject": {"@id": files[0]}, "extract": {"column": name}})
        for name, type_ in imagefolder.metadata_types(export, kind).items()
        if isinstance(type_, str)  # lists and objects are left out of the description
    ]
    return [_file_set(f"{kind.name}-pictures", "image/png", f"{kind.name}/pictures/*/*.png")], fields


def _parquet_records(export: Export, kind: Kind, files: list[str]) -> tuple[list[Any], list[Any]]:
    name, fields = f"{kind.name}-files", []
    for column, type_ in _all_columns(export, kind).items():
        if not isinstance(type_, str):
            continue
        source: dict[str, Any] = {"fileSet": {"@id": name}, "extract": {"column": column}}
        if type_ == "picture":
            source["transform"] = {"jsonPath": "bytes"}
        fields.append(_field(kind, column, _CROISSANT_TYPES.get(type_, "sc:ImageObject"), source))
    return [_file_set(name, _PARQUET, f"{kind.name}/*.parquet")], fields


def _tar_records(export: Export, kind: Kind, files: list[str]) -> tuple[list[Any], list[Any]]:
    name = f"{kind.name}-pictures"
    inside = {"containedIn": [{"@id": file} for file in files]}
    sets = [
        _file_set(name, "image/png", f"*-{'?' * KEY_LENGTH}.png") | inside,  # and no *.source.png
        _file_set(f"{kind.name}-records", "application/json", "*.json") | inside,
        _file_set(f"{kind.name}-prompts", "text/plain", "*.txt") | inside,
    ]
    return sets, _picture_fields(kind, name)
