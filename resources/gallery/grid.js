// The grid: of all entries in view, only those near the window exist as elements. Lines of cards are laid out ahead, with
// a heading before the samples of each prompt where they stand side by side.
"use strict";

window.grid = (() => {
  const GAP = 12;
  const HEADING = 44;
  const [LINE, LEAST] = [17, 58]; // pixels of a line below a picture, and of all of them at least
  const scroller = document.getElementById("scroller");
  const space = document.getElementById("space");
  const shown = new Map(); // line -> its element
  let view = []; // entries, in order
  let lines = []; // {from, to, top, heading}: cards from..to of the view
  let grouped = false;
  let groupOf = gallery.group; // entry -> what stands under one heading
  let size = 190;
  let columns = 1;
  let width = 190;
  let active = 0; // position in the view
  let onOpen = () => {};
  let leading = []; // scores that stand first below a picture
  let ranked = false; // whether these have their ranks
  let below = LEAST; // pixels below a picture

  const element = (name, className, text) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  function open(tell) {
    onOpen = tell;
    scroller.addEventListener("scroll", () => requestAnimationFrame(render), { passive: true });
    new ResizeObserver(() => layout()).observe(scroller);
    scroller.addEventListener("click", (event) => {
      const card = event.target.closest(".card");
      if (!card) return;
      activate(Number(card.dataset.at));
      onOpen(active);
    });
  }

  function show(entries, options) {
    const kept = view[active];
    view = entries;
    ({ grouped, leading, ranked, groupOf = gallery.group } = options);
    const counts = Object.keys(gallery.set.kinds).map((kind) => numbers(kind).length);
    below = Math.max(LEAST, 7 + LINE * (1 + Math.max(0, ...counts)));
    space.style.setProperty("--below", `${below}px`);
    const at = options.keep && kept !== undefined ? view.indexOf(kept) : -1;
    active = Math.max(0, at);
    scroller.setAttribute("aria-activedescendant", "");
    for (const [line, made] of shown) (made.remove(), shown.delete(line));
    if (!options.keep) scroller.scrollTop = 0;
    layout();
  }

  function resize(pixels) {
    size = pixels;
    layout();
  }

  function layout() {
    const inner = scroller.clientWidth - 2 * GAP;
    if (inner <= 0) return;
    const first = lines.length ? lines[lineAt(scroller.scrollTop)]?.from : 0;
    columns = Math.max(1, Math.floor((inner + GAP) / (Math.min(size, inner) + GAP)));
    // On a narrow window two small ones side by side say more than a large one.
    if (columns === 1 && inner >= 260) columns = 2;
    width = Math.floor((inner - (columns - 1) * GAP) / columns);
    if (!grouped || columns > view.length) width = Math.min(width, size * 1.6);
    const height = width + below + 4 + GAP;
    lines = [];
    let top = GAP;
    for (let from = 0; from < view.length; ) {
      let end = view.length;
      if (grouped) {
        const group = groupOf(view[from]);
        for (end = from + 1; end < view.length && groupOf(view[end]) === group; ) end++;
        lines.push({ from, to: from, top, heading: true });
        top += HEADING;
      }
      for (; from < end; from += columns) {
        lines.push({ from, to: Math.min(from + columns, end), top, heading: false });
        top += height;
      }
      from = end;
    }
    space.style.height = `${top}px`;
    for (const [line, made] of shown) (made.remove(), shown.delete(line));
    const line = first ? lines.findIndex((one) => !one.heading && one.to > first) : 0;
    if (first && line >= 0 && Math.abs(lines[line].top - scroller.scrollTop) > height) scroller.scrollTop = lines[line].top - GAP;
    render();
  }

  // The last line that begins at or above a height.
  function lineAt(top) {
    let [low, high] = [0, lines.length - 1];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (lines[middle].top <= top) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  function render() {
    const height = scroller.clientHeight;
    const from = lineAt(scroller.scrollTop - height);
    const to = lineAt(scroller.scrollTop + 2 * height);
    for (const [line, made] of shown) if (line < from || line > to) (made.remove(), shown.delete(line));
    for (let line = from; line <= to && line < lines.length; line++) {
      if (shown.has(line)) continue;
      const made = lines[line].heading ? heading(lines[line]) : cards(lines[line]);
      made.style.transform = `translateY(${lines[line].top}px)`;
      shown.set(line, made);
      space.append(made);
    }
    fill();
    mark();
  }

  function heading(line) {
    const entry = view[line.from];
    const made = element("div", "heading");
    made.setAttribute("role", "presentation");
    made.append(element("span", "prompt", gallery.value(entry, "prompt") ?? ""), element("span", "row", gallery.value(entry, "row")));
    return made;
  }

  function cards(line) {
    const made = element("div", "line");
    made.setAttribute("role", "presentation");
    made.style.gridTemplateColumns = `repeat(${columns}, ${width}px)`;
    for (let at = line.from; at < line.to; at++) made.append(card(at));
    return made;
  }

  function card(at) {
    const entry = view[at];
    const prompt = gallery.value(entry, "prompt") ?? "";
    const made = element("div", "card");
    made.id = `card-${at}`;
    made.dataset.at = at;
    made.setAttribute("role", "option");
    made.setAttribute("aria-setsize", view.length);
    made.setAttribute("aria-posinset", at + 1);
    const box = element("div", "box");
    box.style.height = `${width}px`;
    const source = gallery.place(entry, "source", "thumbnail");
    if (gallery.place(entry, "image", "thumbnail")) box.append(picture("image", source ? `Result of: ${prompt}` : prompt));
    else box.append(element("p", "missing", gallery.value(entry, "error") ?? "no picture"));
    made.append(box, caption(entry, prompt, source));
    state(made, entry);
    return made;
  }

  // What stands below a picture; for an edit with its source at the left, where it covers nothing of the result.
  function caption(entry, prompt, source) {
    const made = element("div", "caption");
    if (source) made.append(picture("source", "Source"));
    const words = element("div", "words");
    const text = element("div", "prompt", gallery.siblings(entry).length > 1 ? `#${gallery.value(entry, "sample")} ${prompt}` : prompt);
    text.setAttribute("aria-hidden", "true"); // the picture's own text says it
    words.append(text);
    for (const name of numbers(gallery.shardAt(entry).kind)) {
      const [number, called] = [element("div", "number"), element("span", "", name)];
      called.title = name;
      number.append(called, " ", element("b", "", format(gallery.value(entry, name))));
      if (ranked && leading.includes(name)) number.append(element("small", "", percent(gallery.rank(entry, name))));
      words.append(number);
    }
    made.append(words);
    return made;
  }

  // The scores below a picture of a kind, those that the grid is sorted by first.
  function numbers(kind) {
    const { scores, cards } = gallery.set.kinds[kind];
    const first = leading.filter((name) => scores.some((score) => score.name === name));
    return [...first, ...cards.filter((name) => !first.includes(name))].slice(0, Math.max(first.length, cards.length));
  }

  function picture(which, text) {
    const made = element("img", which);
    made.alt = text;
    made.draggable = false;
    made.dataset.which = which;
    return made;
  }

  function format(value) {
    if (value === null) return "–";
    if (typeof value !== "number" || Number.isInteger(value)) return String(value);
    return Math.abs(value) < 1000 ? value.toFixed(2) : value.toFixed(0);
  }

  const percent = (rank) => (rank === null ? "" : `${Math.round(100 * rank)} %`);

  // What became of an image, and its label: words, not colours alone.
  function flags(entry) {
    const [label, failure] = [labels.of(gallery.value(entry, "key")), gallery.failure(entry)];
    const found = [];
    if (failure) found.push(element("span", "flag failed", failure));
    if (failure !== "failed") {
      const selected = gallery.selected(entry);
      found.push(element("span", selected ? "flag selected" : "flag", selected ? "selected" : "not selected"));
    }
    if (label) found.push(element("span", `flag ${label}`, label === "accept" ? "accepted" : "rejected"));
    return found;
  }

  function state(made, entry) {
    made.dataset.label = labels.of(gallery.value(entry, "key")) ?? "";
    made.querySelector(".flags")?.remove();
    const all = element("div", "flags");
    all.append(...flags(entry));
    made.querySelector(".box").append(all);
  }

  // Gives each picture in sight what its pack holds, and asks for the packs that are not there.
  function fill() {
    const [needed, soon] = [new Set(), new Set()];
    const [top, bottom] = [scroller.scrollTop, scroller.scrollTop + scroller.clientHeight];
    for (const [number, made] of shown) {
      const near = lines[number].top < bottom && lines[number].top + width + below > top;
      for (const image of made.querySelectorAll("img:not([src])")) {
        const entry = view[image.closest(".card").dataset.at];
        const where = gallery.place(entry, image.dataset.which, "thumbnail");
        const url = gallery.url(where);
        if (url) {
          image.classList.toggle("small", Math.max(where.width, where.height) < 128);
          image.src = url;
        } else if (url === null) image.replaceWith(element("p", "missing", "the gallery's file cannot be read"));
        else (near ? needed : soon).add(where.pack);
      }
    }
    gallery.want("grid", [...needed, ...soon], fill);
  }

  function relabel() {
    for (const made of space.querySelectorAll(".card")) state(made, view[made.dataset.at]);
  }

  function mark() {
    space.querySelector("[aria-selected=true]")?.setAttribute("aria-selected", "false");
    const made = document.getElementById(`card-${active}`);
    if (!made) return;
    made.setAttribute("aria-selected", "true");
    scroller.setAttribute("aria-activedescendant", made.id);
  }

  function activate(at) {
    if (!view.length) return;
    active = Math.max(0, Math.min(view.length - 1, at));
    const line = lines.find((one) => one.from <= active && active < one.to);
    const height = width + below + 4;
    if (line.top < scroller.scrollTop + GAP) scroller.scrollTop = line.top - GAP - (grouped ? HEADING : 0);
    else if (line.top + height > scroller.scrollTop + scroller.clientHeight) {
      scroller.scrollTop = line.top + height + GAP - scroller.clientHeight;
    }
    render();
  }

  // One line up or down: the card that is nearest in the line there.
  function step(by) {
    const cardLines = lines.filter((line) => !line.heading);
    const now = cardLines.findIndex((line) => line.from <= active && active < line.to);
    const next = cardLines[Math.max(0, Math.min(cardLines.length - 1, now + by))];
    if (next && cardLines[now] !== next) activate(Math.min(next.from + active - cardLines[now].from, next.to - 1));
  }

  const page = () => Math.max(1, Math.floor(scroller.clientHeight / (width + below + 4 + GAP)));

  return {
    open, show, resize, activate, step, page, relabel, fill, format, percent, element, flags,
    get view() { return view; },
    get active() { return active; },
  };
})();
