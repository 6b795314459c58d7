"""What the gallery's index says besides the images: rejected rows, and models by name."""

import json

from darkroom.config import home
from darkroom.run.workflow import Workflow
from darkroom.views import gallery


def test_rejected_rows_are_counted_and_the_first_of_them_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "REJECTED_LISTED", 3)
    path = tmp_path / "rejected.jsonl"
    records = [{"file": "prompts", "line": n, "reason": f"id 'r{n}' is taken", "text": "x" * 1000} for n in range(1, 4)]
    records.insert(0, {"file": "edits", "name": "more.jsonl", "line": 7, "reason": "no prompt", "text": "{}"})
    records.append({"file": "labels", "line": 2, "reason": "no image has the key k", "text": "k,accept"})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = gallery.rejected_rows(path, {"prompts": "rows.jsonl", "edits": "2 files", "labels": "labels.csv"})
    assert found["count"] == 5
    assert found["reasons"] == [("id … is taken", 3), ("no prompt", 1), ("no image has the key k", 1)]
    assert found["rows"][0] == ("more.jsonl", 7, "no prompt", "{}")
    assert found["rows"][1:] == [("rows.jsonl", n, f"id 'r{n}' is taken", "x" * 300) for n in (1, 2)]


def test_models_have_names_in_gallery_and_report(tmp_path):
    """The name of a folder, without where it lies; what it is known by in keys stands beside it."""
    config = {"prompts": "config/demo/prompts.jsonl", "results": str(tmp_path)}
    config |= {section: {"model": "resources/models/shapes-flux", "device": "cpu"} for section in ("generate", "edit")}
    config |= {"judge": {"model": "resources/models/shapes-judge", "device": "cpu"}, "edits": "config/demo/edits.jsonl"}
    workflow = Workflow.open(config)
    told, settings = workflow.gallery_about()["models"], workflow.settings()
    for section, name in (("generate", "shapes-flux"), ("edit", "shapes-flux"), ("judge", "shapes-judge")):
        assert settings[section]["model"] == name and settings[section]["identity"].startswith("folder:")
        assert told[settings[section]["identity"]] == name
    assert str(home()) not in json.dumps([told, settings])
