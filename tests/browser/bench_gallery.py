"""What a gallery costs: CPU seconds per picture at 2,000 and 20,000 pictures, the time to the first picture
shown, and that scrolling shows no card without its picture.

    python tests/browser/bench_gallery.py [--numbers 2000 20000]

Prints the ratio beside its limit and exits with status 1 where a figure is above it.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from conftest import FLAGS
from playwright.sync_api import sync_playwright
from synthetic import make_gallery, make_set, scroll_through

MOST_RATIO, MOST_SECONDS = 1.2, 2.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--numbers", type=int, nargs=2, default=(2000, 20_000))
    numbers = parser.parse_args().numbers
    costs, good = [], True
    with sync_playwright() as playwright, tempfile.TemporaryDirectory(prefix="darkroom-bench-") as name:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for number in numbers:
            folder = Path(name, str(number))
            folder.mkdir()
            kind = make_set(folder, number, side=320)
            began = time.process_time()
            path = make_gallery(kind, folder)
            costs.append((time.process_time() - began) / number)
            page = browser.new_page()
            began = time.monotonic()
            page.goto(path.as_uri())
            page.wait_for_selector(".card img[src]")
            first = time.monotonic() - began
            page.wait_for_function("() => gallery.set.loaded === gallery.set.total")
            page.wait_for_timeout(500)
            began = time.monotonic()
            scroll_through(page)
            scrolled = time.monotonic() - began
            size = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file()) / number
            good &= first <= MOST_SECONDS
            print(
                f"{number:>7,} pictures: {1000 * costs[-1]:.2f} ms and {size / 1000:.1f} KB each,"
                f" first picture after {first:.2f} s (limit {MOST_SECONDS}), six jumps without a blank card {scrolled:.2f} s"
            )
            page.close()
        browser.close()
    ratio = costs[1] / costs[0]
    print(f"cost of a picture: ratio {ratio:.2f} (limit {MOST_RATIO})")
    return 0 if good and ratio <= MOST_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
