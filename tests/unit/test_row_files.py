"""Whatever files people have: every row is a request or a recorded rejection, in its place, and good rows are unharmed."""

import csv
import gzip
import io
import itertools
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
from darkroom.config.models import Generate
from darkroom.plan.requests import expand
from darkroom.plan.shards import make_plan
from hypothesis import given, settings
from hypothesis import strategies as st

SECTION = Generate(width=64, height=64)
# A prompt may hold any character; one in a .txt file none that ends a line.
anything = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12).map("x{}".format)
in_a_line = st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=12).map("x {}x".format)


def jsonl(rows, encoding, draw):
    bad = [
        "{}",
        "[1]",
        '{"prompt": 1}',
        "a fox",
        '{"prompt": "a"',
        '{"conversations": [{"role": "system", "content": "a"}]}',
    ]
    lines = [json.dumps(row, ensure_ascii=draw(st.booleans())) if row else draw(st.sampled_from(bad)) for row in rows]
    blank = st.sampled_from(["", "", "   \n", "\n"])
    return "".join(line + "\n" + draw(blank) for line in lines).encode(encoding)


def array(rows, encoding, draw):
    bad = st.sampled_from([{}, 1, None, "a", {"prompt": ["a"]}, {"prompt": " "}])
    values = [row or draw(bad) for row in rows]
    return json.dumps(values, indent=draw(st.sampled_from([None, 1])), ensure_ascii=draw(st.booleans())).encode(
        encoding
    )


def table(rows, encoding, draw, delimiter):
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator=draw(st.sampled_from(["\n", "\r\n"])))
    spare = draw(st.integers(0, 2))
    writer.writerow(["id", "prompt", "seed", *[""] * spare])
    for row in rows:
        bad = draw(st.sampled_from([["b", ""], ["b", "a", "seven"], ["b", "a", "7", *[""] * spare, "more"]]))
        writer.writerow([row["id"], row["prompt"], row.get("seed", ""), *[""] * spare] if row else bad)
    return out.getvalue().encode(encoding)


def text(rows, encoding, draw):
    if "16" in encoding:  # every line is good where a bad byte would move all further letters
        return "\n".join(row["prompt"] if row else "\n" for row in rows).encode(encoding)
    return b"\n".join(row["prompt"].encode() if row else b"caf\xe9" for row in rows)


def parquet(rows, draw):
    picture = [{"bytes": b"\xff\x00", "path": None}] * len(rows)
    columns = {"id": [row["id"] if row else None for row in rows], "image": picture}
    columns["prompt"] = [row["prompt"] if row else draw(st.sampled_from([None, "", " "])) for row in rows]
    columns["seed"] = pa.array([row.get("seed") if row else None for row in rows], pa.uint32())
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, row_group_size=draw(st.integers(1, 5)))
    return out.getvalue()


def tar(rows, draw):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for number, row in enumerate(rows):
            bad = draw(st.sampled_from([b"[1]", b"{}", b"no JSON", b'{"prompt": 3}']))
            for kind, data in {"json": json.dumps(row).encode() if row else bad, "cls": b"7"}.items():
                info = tarfile.TarInfo(f"folder/{number:05}.{kind}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


@st.composite
def files(draw):
    """[(name, content, rows)] with None for a bad row."""
    found, count = [], itertools.count()
    for number in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["jsonl", "json", "csv", "tsv", "txt", "parquet", "tar"]))
        encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
        rows = []
        for good in draw(st.lists(st.booleans(), min_size=1, max_size=12)):
            row = {"id": f"r{next(count)}", "prompt": draw(in_a_line if kind == "txt" else anything)}
            row |= {"seed": draw(st.integers(0, 2**32 - 1))} if kind != "txt" and draw(st.booleans()) else {}
            rows.append(row if good else None)
        name = f"{number}.{kind}"
        if kind in ("parquet", "tar"):
            content = parquet(rows, draw) if kind == "parquet" else tar(rows, draw)
        else:
            if kind == "jsonl":
                content = jsonl(rows, encoding, draw)
            elif kind == "json":
                content = array(rows, encoding, draw)
            elif kind == "txt":
                content = text(rows, encoding, draw)
                rows = [row for row in rows if row] if "16" in encoding else rows
            else:
                content = table(rows, encoding, draw, "\t" if kind == "tsv" else draw(st.sampled_from(",;\t|")))
            if draw(st.booleans()):
                name, content = f"{name}.gz", gzip.compress(content)
        found.append((name, content, rows))
    return found


@settings(derandomize=True, deadline=None, max_examples=100)
@given(files().filter(lambda found: any(rows for _, _, rows in found)))
def test_every_row_of_every_file_is_a_request_or_a_rejection(tmp_path_factory, found):
    folder = tmp_path_factory.mktemp("files")
    for name, content, _ in found:
        (folder / name).write_bytes(content)
    plan = make_plan([folder / name for name, _, _ in found], "prompts", 5, folder / "results")
    expected = [(name, row) for name, _, rows in found for row in rows]
    lines = list(plan.rows())
    assert len(lines) == len(expected) == plan.rows_used + plan.rows_rejected
    assert plan.rows_rejected == sum(reason.rows for reason in plan.reasons)
    requests = 0
    for (shard, line), (name, row) in zip(lines, expected, strict=True):
        if row is None:
            assert line["rejected"] and plan.place(plan.shards[shard].first_line + line["line"])[0] == name
            continue
        (request,) = expand(line, SECTION, 0, 1)
        requests += 1
        assert request.prompt == row["prompt"]
        assert name.startswith(("0.txt", "1.txt", "2.txt")) or request.row == row["id"]
        assert "seed" not in row or request.seed == row["seed"]
    assert requests == plan.rows_used == sum(shard.requests(1) for shard in plan.shards.values())
