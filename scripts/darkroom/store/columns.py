"""The columns of shard files and tables, and their types. This module is light: a config that names them is checked by it."""

from typing import Any

# Of a column: "text", "int", "float", "bool", "bytes" or "picture" (of which "bytes" are files as they are, "picture" is decoded by
# `datasets`), {"list": type} or {"struct": [[name, type], ...]}. It is plain JSON that keeps its order.
Type = str | dict[str, Any]

IMAGE_COLUMNS = {
    "key": "text",
    "row": "text",
    "item": "int",
    "sample": "int",
    "prompt": "text",
    "negative_prompt": "text",
    "seed": "int",
    "width": "int",
    "height": "int",
    "steps": "int",
    "guidance": "float",
    "true_cfg": "float",
    "origin": "text",
    "sha256": "text",
    "error": "text",
    "fields": "text",
    "image": "picture",
}
EDITED_COLUMNS = IMAGE_COLUMNS | {
    "source_name": "text",
    "source_origin": "text",
    "source_kind": "text",
    "source_parts": "text",
    "source_sha256": "text",
    "source": "picture",
}

# Columns of the final tables before those of scores; those of edits alone are null for generated images. Between `kind` and the
# others stands `model` where the config names several.
TABLE_COLUMNS = {"kind": "text", "shard": "text"} | {
    name: type_ for name, type_ in EDITED_COLUMNS.items() if type_ != "picture" and name != "fields"
}
