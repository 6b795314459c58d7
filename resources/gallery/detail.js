// One image at full size: its record, scores and replies, its sisters, and for an edit the source under a slider.
"use strict";

window.detail = (() => {
  const part = (id) => document.getElementById(id);
  const [dialog, stage, room, frame, large, before, slider] = ["detail", "stage", "room", "frame", "large", "before", "slider"].map(part);
  const NEAR = 28; // pixels from the border where a finger takes it
  const { element, format, percent } = grid;
  const LONG = 200; // letters of a text that are shown at once
  let entry = null;
  let onLabel = () => {};
  let originals = null; // whether the data set lies beside the gallery: a promise, once it is asked

  function open(tell) {
    onLabel = tell;
    new ResizeObserver(fit).observe(room);
    slider.addEventListener("input", move);
    part("previous").addEventListener("click", () => go(-1));
    part("next").addEventListener("click", () => go(1));
    part("accept").addEventListener("click", () => label("accept"));
    part("reject").addEventListener("click", () => label("reject"));
    part("close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => part("scroller").focus({ preventScroll: true }));
    // Of the page, for keys go to its body where what had the focus is gone.
    addEventListener("keydown", (event) => dialog.open && !part("help").open && onKey(event));
    pointers();
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const onSlider = event.target === slider;
    const keys = {
      ArrowLeft: onSlider ? null : () => go(-1),
      ArrowRight: onSlider ? null : () => go(1),
      a: () => label("accept"),
      r: () => label("reject"),
      u: () => label(null),
      s: () => slider.hidden || (onSlider ? dialog : slider).focus(),
      "?": () => part("help").showModal(),
    };
    const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (act) (event.preventDefault(), act());
  }

  function show(one) {
    entry = one;
    render();
    if (!dialog.open) {
      dialog.showModal();
      dialog.focus(); // not the first part that takes the focus: an arrow key goes to the next image, as in the grid
    }
    fit();
    part("scroller").inert = false;
  }

  function go(by) {
    const at = grid.active + by;
    if (at < 0 || at >= grid.view.length) return;
    grid.activate(at);
    show(grid.view[at]);
  }

  function label(name) {
    const last = grid.active === grid.view.length - 1;
    onLabel(entry, name);
    if (name && part("advance").checked && grid.view[grid.active] === entry && !last) go(1);
    else render();
  }

  function render() {
    if (entry === null) return;
    const value = (name) => gallery.value(entry, name);
    const { kind, name: shard, data } = gallery.shardAt(entry);
    part("prompt").textContent = value("prompt") ?? "";
    dialog.setAttribute("aria-label", `${value("prompt") ?? "Image"}, sample ${value("sample")}`);
    const given = labels.of(value("key"));
    for (const name of ["accept", "reject"]) part(name).setAttribute("aria-pressed", String(given === name));
    const badges = [`${grid.active + 1} of ${grid.view.length}`, gallery.set.kinds[kind].one];
    part("badges").replaceChildren(...badges.map((text) => element("span", "flag", text)));
    part("badges").append(...grid.flags(entry));
    const missed = value("error") === null && !gallery.selected(entry) ? gallery.reasons(entry) : [];
    part("why").hidden = !missed.length;
    part("why").textContent = `Not selected: ${missed.join(", ")}.`;
    part("previous").disabled = grid.active === 0;
    part("next").disabled = grid.active === grid.view.length - 1;
    if (document.activeElement?.disabled) dialog.focus();
    pictures(value);
    scores(kind, value);
    siblings();
    // Metrics that ask a model: the judge, and whichever else has one.
    const models = Object.fromEntries(Object.entries(data.metrics).map(([name, { model }]) => [name, called(model)]));
    const facts = {
      row: value("row"),
      sample: value("sample"),
      item: value("item") || null,
      seed: value("seed"),
      size: value("width") && `${value("width")} × ${value("height")}`,
      steps: value("steps"),
      guidance: value("guidance"),
      "true cfg": value("true_cfg"),
      "negative prompt": value("negative_prompt"),
      source: gallery.sources(entry).map((one) => to(one.entry) ?? `${one.name} `),
      alike: gallery.twins(entry).filter((one) => one !== entry).map(to),
      "start of": gallery.following(entry).map(to),
      origin: value("origin"),
      model: called(data.recipe.model),
      ...models,
      "your fields": value("fields") === "{}" ? null : value("fields"),
      key: value("key"),
      file: data.file,
    };
    list(part("facts"), facts);
    const recipe = { [kind]: data.recipe, ...data.metrics, versions: data.versions };
    part("recipe").textContent = JSON.stringify(recipe, null, 1);
    original(`../dataset/${kind}/${shard}/${value("key")}.png`);
  }

  // A model's name; its identity, such as the hash of its folder, stands in the recipe.
  const called = (identity) => gallery.set.models[identity] ?? identity;

  // The link to the file in the data set, where that was made and the gallery still lies beside it.
  function original(address) {
    const link = part("original");
    link.hidden = true;
    link.removeAttribute("href");
    // What was selected in the last run has a file. A web server of the gallery's folder alone does not reach it.
    const reachable = location.protocol === "file:" || !/^\/[^/]*$/.test(location.pathname);
    if (!gallery.set.dataset || !gallery.kept(entry) || !reachable) return;
    originals ??= new Promise((told) => {
      const image = new Image();
      image.onload = () => told(true);
      image.onerror = () => told(false);
      image.src = address;
    });
    const asked = entry;
    originals.then((there) => {
      if (!there || asked !== entry) return;
      link.href = address;
      link.hidden = false;
    });
  }

  function list(target, facts) {
    target.replaceChildren();
    for (const [name, fact] of Object.entries(facts)) {
      if (fact === null || fact === undefined || fact === "" || fact.length === 0) continue;
      const told = element("dd", "");
      told.append(...(Array.isArray(fact) ? fact : [fact instanceof Node ? fact : String(fact)]));
      target.append(element("dt", "", name), told);
    }
  }

  // A button that leads to another entry, by what it is called; null where there is none.
  function to(other) {
    if (other === undefined) return null;
    const button = element("button", "link", ["row", "item", "sample"].map((name) => gallery.value(other, name)).join("/"));
    button.type = "button";
    button.title = gallery.value(other, "prompt") ?? "";
    button.addEventListener("click", () => goTo(other));
    return button;
  }

  // Another entry, which may be out of the view.
  function goTo(other) {
    const at = grid.view.indexOf(other);
    if (at >= 0) grid.activate(at);
    show(other);
  }

  // What each metric says: its scores, then its other numbers and its texts.
  function scores(kind, value) {
    const { scores: known, told, questions } = gallery.set.kinds[kind];
    const metrics = new Map([...known, ...told].map(({ metric }) => [metric, []]));
    for (const score of known) metrics.get(score.metric).push(term(score.name, score.label), meter(score, value(score.name)));
    for (const { name, metric } of told) {
      const one = value(name);
      if (one === null || one === "") continue;
      const line = element("dd", typeof one === "string" ? "prose" : "");
      line.append(typeof one === "string" ? long(one) : format(one));
      metrics.get(metric).push(term(name), line);
    }
    const parts = [...metrics].filter(([, lines]) => lines.length).flatMap(([metric, lines]) => {
      const list = element("dl");
      list.append(...lines);
      return metrics.size > 1 ? [element("h4", "", metric), list] : [list];
    });
    part("detail-scores").replaceChildren(...parts);
    part("scores-title").hidden = !parts.length;
    const replies = [];
    for (const question of questions) {
      const [reply, error] = [question.reply && value(question.reply), value(question.error)];
      if (reply === null && error === null) continue;
      const more = element("details");
      more.append(element("summary", "", `${question.name}: ${error ?? "what was asked and said"}`));
      if (error) more.classList.add("wrong");
      more.append(element("p", "asked", question.text.replaceAll("{prompt}", value("prompt") ?? "")));
      if (reply !== null) more.append(element("pre", "", reply));
      replies.push(more);
    }
    part("replies").replaceChildren(...replies);
  }

  function term(name, label) {
    const made = element("dt", "", name);
    if (label) made.title = label;
    return made;
  }

  // A score on the scale of its range, with its threshold, and how many of the set are lower.
  function meter({ name, low, high, least }, number) {
    const made = element("dd", "meter");
    const bar = element("span", "bar");
    bar.style.width = number === null ? "0" : `${(100 * (number - low)) / (high - low || 1)}%`;
    made.append(bar, element("b", "", number === null ? "none" : format(number)));
    made.append(element("small", "", percent(gallery.rank(entry, name))));
    if (least !== null) {
      const mark = element("span", "least");
      mark.style.left = `${(100 * (least - low)) / (high - low || 1)}%`;
      mark.title = `selected from ${least}`;
      made.append(mark);
      if (number === null || number < least) made.classList.add("below");
    }
    return made;
  }

  // A text; of a very long one its beginning, which opens.
  function long(text) {
    if (text.length <= LONG) return text;
    const [made, begin] = [element("details", "long"), element("summary", "", `${text.slice(0, LONG)}…`)];
    begin.title = text;
    made.append(begin, text);
    made.addEventListener("toggle", () => (begin.textContent = made.open ? "less" : `${text.slice(0, LONG)}…`));
    return made;
  }

  function pictures(value) {
    const [result, source] = ["image", "source"].map((which) => gallery.place(entry, which, "preview"));
    const both = Boolean(result && source);
    for (const id of ["before", "divider", "slider", "tag-after"]) part(id).hidden = !both;
    part("tag-before").hidden = !source;
    large.alt = result ? value("prompt") ?? "" : source ? "Source" : "";
    before.alt = both ? "Source" : "";
    const reason = value("error");
    part("reason").hidden = !reason && Boolean(result);
    part("reason-text").textContent = reason ?? "Its file cannot be shown.";
    large.hidden = !result && !source;
    put(large, result ?? source, result ? "image" : "source");
    put(before, both ? source : null, "source");
    move();
    want();
  }

  // The preview once it is there; until then the thumbnail, which mostly is.
  function put(image, where, which) {
    if (!where) return image.removeAttribute("src");
    const url = gallery.url(where) ?? gallery.url(gallery.place(entry, which, "thumbnail"));
    if (url) image.src = url;
    else image.removeAttribute("src");
    image.classList.toggle("small", Math.max(where.width, where.height) < 128);
    image.dataset.ready = Boolean(gallery.url(where));
  }

  function want() {
    const near = [entry, grid.view[grid.active + 1], grid.view[grid.active - 1]].filter((one) => one !== undefined);
    const places = near.flatMap((one) => ["image", "source"].map((which) => gallery.place(one, which, "preview")));
    for (const one of [...gallery.siblings(entry), ...gallery.rivals(entry)]) places.push(gallery.place(one, "image", "thumbnail"));
    const names = new Set(places.filter(Boolean).map((where) => where.pack));
    gallery.want("detail", [...names], () => dialog.open && arrive());
  }

  function arrive() {
    for (const [image, which] of [[large, gallery.place(entry, "image", "preview") ? "image" : "source"], [before, "source"]]) {
      const where = image.hidden ? null : gallery.place(entry, which, "preview");
      if (where && image.dataset.ready !== "true") put(image, where, which);
    }
    for (const image of part("siblings").querySelectorAll("img:not([src])")) sibling(image);
  }

  function siblings() {
    const all = [...gallery.siblings(entry), ...gallery.rivals(entry)];
    part("siblings-part").hidden = all.length < 2;
    const buttons = all.length < 2 ? [] : all.map((one) => {
      const button = element("button");
      button.type = "button";
      button.setAttribute("aria-current", String(one === entry));
      const image = element("img");
      const { of, one: called } = gallery.set.kinds[gallery.shardAt(one).kind];
      image.alt = `${of === undefined ? "" : `${called}, `}sample ${gallery.value(one, "sample")}`;
      if (of !== undefined) button.title = image.alt;
      image.dataset.entry = one;
      button.dataset.label = labels.of(gallery.value(one, "key")) ?? "";
      button.append(gallery.place(one, "image", "thumbnail") ? image : "failed");
      sibling(image);
      button.addEventListener("click", () => goTo(one));
      return button;
    });
    part("siblings").replaceChildren(...buttons);
  }

  function sibling(image) {
    const where = gallery.place(Number(image.dataset.entry), "image", "thumbnail");
    const url = where && gallery.url(where);
    if (!url) return;
    image.src = url;
    image.classList.toggle("small", Math.max(where.width, where.height) < 128);
  }

  // The frame is as large as the picture fits, so that the slider's border runs over the picture alone.
  function fit() {
    const where = entry === null ? null : gallery.place(entry, "image", "preview") ?? gallery.place(entry, "source", "preview");
    frame.hidden = !where;
    if (!where || !dialog.open) return;
    const scale = Math.min(room.clientWidth / where.width, room.clientHeight / where.height, 8);
    frame.style.width = `${Math.floor(where.width * scale)}px`;
    frame.style.height = `${Math.floor(where.height * scale)}px`;
  }

  function move() {
    frame.style.setProperty("--border", `${slider.value}%`);
    slider.setAttribute("aria-valuetext", `${Math.round(slider.value)} % source`);
  }

  // A mouse moves the border from wherever on the picture it is pressed; a finger takes it where it is, and elsewhere swipes from
  // image to image. The input itself is for the keyboard.
  function pointers() {
    let held = null; // {id, x, y, border}
    const drag = (event) => {
      const box = frame.getBoundingClientRect();
      slider.value = (100 * (event.clientX - box.left)) / box.width;
      move();
    };
    const takes = (event) => {
      if (slider.hidden || !frame.contains(event.target)) return false;
      const box = frame.getBoundingClientRect();
      return event.pointerType === "mouse" || Math.abs(event.clientX - box.left - (slider.value / 100) * box.width) < NEAR;
    };
    stage.addEventListener("pointerdown", (event) => {
      held = null;
      if (!event.isPrimary || event.button || event.target.closest("button")) return;
      held = { id: event.pointerId, x: event.clientX, y: event.clientY, border: takes(event) };
      if (!held.border) return;
      frame.setPointerCapture(event.pointerId);
      drag(event);
    });
    stage.addEventListener("pointermove", (event) => held?.border && event.pointerId === held.id && drag(event));
    stage.addEventListener("pointerup", (event) => {
      if (!held || event.pointerId !== held.id) return;
      const [x, y] = [event.clientX - held.x, event.clientY - held.y];
      const zoomed = window.visualViewport?.scale > 1.01; // then a finger moves over the picture
      const swiped = event.pointerType !== "mouse" && !held.border && !zoomed && Math.abs(x) > 50 && Math.abs(x) > 2 * Math.abs(y);
      held = null;
      if (swiped) go(x < 0 ? 1 : -1);
    });
    stage.addEventListener("pointercancel", () => (held = null));
  }

  return { open, show, refresh: () => dialog.open && render(), get isOpen() { return dialog.open; } };
})();
