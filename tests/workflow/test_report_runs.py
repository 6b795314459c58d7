"""The report: its plots are drawn again with the tables and with nothing else, and a browser shows every one of them."""

import json
import shutil
import time
import zipfile

import pandas as pd
import pytest
from conftest import BAD, REPOSITORY, copied, shards
from darkroom.config.models import Select
from darkroom.metrics.rubric import load_rubric
from darkroom.views.report import read_table


def plots(run):
    """name -> content of every plot that tells nothing of time."""
    return {path.name: path.read_bytes() for path in run.results.glob("plots/*") if path.stem != "time"}


@pytest.fixture(scope="module")
def reported(finished, tmp_path_factory):
    """The finished run with a gallery, and its report drawn."""
    run = copied(finished, tmp_path_factory.mktemp("reported") / "run")
    run.config |= {"report": {"enabled": True}, "gallery": {"enabled": True}}
    assert {"draw_plots", "gallery_index"} <= set(run.planned())
    run.snakemake()
    return run


@pytest.fixture
def copy(reported, tmp_path):
    return copied(reported, tmp_path / "copy")


def shown(browser, path):
    """name -> (width, height) of each result as the report shows it, after a click on its eye; (0, 0): a page."""
    page, complaints, found = browser.new_page(viewport={"width": 1400, "height": 900}), [], {}
    page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(request.url[:100]))
    page.on("request", lambda request: request.url.startswith("http") and complaints.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("#app nav")
    names = page.evaluate("Object.keys(results)")
    for category in page.evaluate("Object.keys(categories)"):
        page.evaluate("category => app.showCategory(category)", category)
        page.wait_for_selector(f"#app nav ol >> text={category}")
        eyes = page.locator("a[iconname=eye]")
        for place in range(eyes.count()):
            eyes.nth(place).click()
            page.wait_for_function("() => app.state.content === 'img' || app.state.content === 'html'")
            name = page.evaluate("app.state.resultPath")
            if page.evaluate("app.state.content") == "html":
                assert "steps" in page.frame_locator("iframe").locator("body").inner_text()
                found[name] = (0, 0)
            else:
                picture = page.wait_for_function(
                    "() => [...document.images].find(i => i.complete && i.naturalWidth > 300 && i.offsetWidth > 300)"
                )
                found[name] = tuple(picture.evaluate("i => [i.naturalWidth, i.naturalHeight]"))
            page.evaluate("app.setView({content: 'rulegraph'})")
        for place in range(page.locator("a[iconname=information-circle]").count()):
            page.evaluate("category => app.showCategory(category)", category)
            page.locator("a[iconname=information-circle]").nth(place).click()
            page.wait_for_selector("text=Description")
    page.close()
    return names, found, complaints


def test_a_browser_shows_every_result_of_the_report(copy, browser):
    pictures = {f"results/plots/{path.name}" for path in copy.results.glob("plots/*.svg")}
    assert len(pictures) == 12 and all(path.with_suffix(".png").exists() for path in copy.results.glob("plots/*.svg"))
    copy.snakemake("--report", "report.zip")
    with zipfile.ZipFile(copy.folder / "report.zip") as archive:
        inside = {name.rpartition("/")[2]: archive.read(name) for name in archive.namelist() if "/data/raw/" in name}
        archive.extractall(copy.folder / "opened")
    declared = pictures | {"results/plots/recipe.html", "results/plots/steps.html"}
    assert {f"results/plots/{name}" for name in inside} == declared
    assert all((copy.results / "plots" / name).read_bytes() == content for name, content in inside.items())
    copy.snakemake("--report", "report.html")
    for path in (copy.folder / "opened/report/report.html", copy.folder / "report.html"):
        names, found, complaints = shown(browser, path)
        assert set(names) == set(found) == declared
        assert all(width > 300 for name, (width, _) in found.items() if name in pictures)
        assert complaints == []


def test_a_threshold_and_labels_draw_the_plots_again_and_load_no_model(copy, reported):
    """And the same plots come back, byte by byte, with what was there before."""
    before, benchmarks = plots(copy), {p: p.read_bytes() for p in copy.results.glob("benchmarks/*_images/**/*.*")}
    copy.config["select"] = {"images": {"p_yes": 0.99}}
    keys = pd.read_parquet(copy.results / "scores.parquet").query("kind == 'images'")["key"]
    labelled = [f"{key},{('accept', 'reject')[place % 2]}\n" for place, key in enumerate(keys)]
    (copy.folder / "labels.csv").write_text("key,label\n" + "".join(labelled))
    copy.config["labels"] = str(copy.folder / "labels.csv")
    assert copy.planned() == dict.fromkeys(("merge_scores", "write_dataset", "gallery_index", "draw_plots", "all"), 1)
    started = time.monotonic()
    copy.snakemake()
    print(f"{time.monotonic() - started:.1f} s for a threshold")
    after = plots(copy)
    changed = {name for name in before if before[name] != after[name]}
    assert {"yield.svg", "yield.png", "images_scores.svg", "recipe.html", "labels.svg", "labels.png"} <= changed
    assert not changed & {"edited_scores.svg", "failures.svg", "images_agreement.png", "edited_examples.svg"}
    assert {p: p.read_bytes() for p in copy.results.glob("benchmarks/*_images/**/*.*")} == benchmarks
    del copy.config["select"], copy.config["labels"]
    copy.snakemake()
    assert plots(copy) == before
    assert shards(copy) == shards(reported)


def test_lost_packs_of_the_gallery_come_back(copy, reported):
    """Of a shard that lost one of them, and of one that lost its folder; nothing else runs."""
    first, second = sorted({path.parent for path in copy.results.glob("gallery/images/*/*-t0.js")})[:2]
    next(first.glob("*-t0.js")).unlink()
    shutil.rmtree(second)
    assert copy.planned() == {"gallery_shard": 2, "all": 1}
    copy.snakemake()
    assert copy.planned() == {}
    assert shards(copy) == shards(reported)


def test_lost_and_stale_plots_come_back(copy):
    before = plots(copy)
    (copy.results / "plots/yield.png").unlink()
    assert copy.planned() == {"draw_plots": 1, "all": 1}
    shutil.rmtree(copy.folder / ".snakemake")
    copy.snakemake()
    assert plots(copy) == before and copy.planned() == {}
    manifest = copy.results / ".darkroom/made/plots.manifest"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"digest": "of another table"}))
    assert copy.planned() == {"draw_plots": 1, "all": 1}


def test_the_numbers_are_those_of_the_table(copy):
    table = pd.read_parquet(copy.results / "scores.parquet")
    rubric = load_rubric(REPOSITORY / "config/rubrics/shapes.yaml")
    select = Select(images={"p_yes": 0.5})
    labels = table["key"].map(lambda key: ["accept", "reject", None][int(key[0], 16) % 3])
    images = copy.results / "labelled.parquet"
    table.assign(label=labels).to_parquet(images)
    for path, labelled in ((copy.results / "scores.parquet", 0), (images, 1)):
        kinds = read_table(
            path,
            copy.results / "rejected.jsonl",
            rubric.catalogue,
            select,
            {"images": ("prompts", 10), "edited": ("edits", 4)},
        )
        for name, kind in kinds.items():
            part = table[table["kind"] == name]
            made = part[part["error"].isna()]
            assert (kind.requests, kind.made, kind.selected) == (len(part), len(made), part["selected"].sum())
            assert kind.rejected == (len(BAD) if name == "images" else 1)
            assert sum(kind.failures.values()) == kind.rejected + (kind.requests - kind.made) + sum(
                made[f"{question.name}_error"].notna().sum() for question in rubric.questions[name]
            )
            assert kind.labelled == labelled * labels[made.index].notna().sum()
            for score in rubric.catalogue.score_names(name):
                assert kind.scores[score].number == made[score].notna().sum()
                assert kind.scores[score].mean == pytest.approx(made[score].mean(), nan_ok=True)
            best = made.sort_values(kind.by, ascending=False, kind="stable").drop_duplicates("row")
            assert [example.key for example in kind.best] == list(best["key"][:8])
        assert sorted(kinds) == ["edited", "images"]
