// Filters, sorting, keys and labels: what is in view, and what the person does with it.
"use strict";

(() => {
  const part = (id) => document.getElementById(id);
  const form = part("filters");
  const { element, format } = grid;
  const { set } = gallery;
  const ranges = new Map(); // score -> {low, high, inputs, bars, text, scale}
  const number = new Intl.NumberFormat("en").format;
  const timers = new Map(); // what for -> timer
  const APART = "disagreement"; // what "Sort by" calls the distance of two scores
  const FEW = 8; // scores whose sliders all stand open
  let offered = null; // the kind whose scores can be chosen as the two
  let problem = null;
  let begun = false; // whether something of the set is in view

  function begin() {
    if (!set.set) return say("index.js is missing: run snakemake again.");
    part("title").textContent = set.title;
    part("help-labels").hidden = !set.byLabel;
    document.title = `${set.title} – Darkroom gallery`;
    const kinds = Object.keys(set.kinds);
    part("kind-label").hidden = kinds.length < 2;
    for (const kind of kinds) part("kind").append(new Option(set.kinds[kind].many, kind));
    const all = allScores();
    part("sort").append(...options(all), new Option("label", "label"));
    if (Object.values(set.kinds).some(({ scores }) => scores.length > 1)) part("sort").append(new Option("disagreement of two scores", APART));
    sliders(all);
    if (set.alike) part("show").append(new Option("duplicates", "alike"));
    problem = labels.open(onLabels);
    grid.open((at) => detail.show(grid.view[at]));
    detail.open(label);
    recall();
    form.addEventListener("input", (event) => (event.target.id === "size" ? grid.resize(Number(event.target.value)) : apply()));
    form.addEventListener("submit", (event) => event.preventDefault());
    part("search").addEventListener("input", () => later("search", apply, 120));
    part("reset").addEventListener("click", reset);
    part("export").addEventListener("click", () => labels.save());
    part("more").addEventListener("click", () => gallery.more(arrived));
    for (const show of ["failed", "rejected"]) {
      part(`${show}-button`).addEventListener("click", () => ((part("show").value = show), apply()));
    }
    part("filters-button").addEventListener("click", () => drawer());
    part("help-button").addEventListener("click", () => part("help").showModal());
    addEventListener("keydown", onKey);
    grid.resize(Number(part("size").value));
    onLabels();
    gallery.start(arrived);
  }

  // Scores of all kinds, each with the kinds that have it; where two have one of the same name, over both ranges.
  function allScores() {
    const found = new Map();
    for (const [kind, { scores }] of Object.entries(set.kinds)) {
      for (const score of scores) {
        const same = found.get(score.name) ?? { ...score, kinds: [] };
        const [low, high] = [Math.min(same.low, score.low), Math.max(same.high, score.high)];
        found.set(score.name, { ...same, low, high, kinds: [...same.kinds, kind] });
      }
    }
    return [...found.values()];
  }

  // Choices of scores; of several metrics, each under its metric's name.
  function options(scores) {
    const metrics = [...new Set(scores.map(({ metric }) => metric))];
    const choices = (some) => some.map(({ name }) => new Option(name, name));
    if (metrics.length < 2) return choices(scores);
    return metrics.map((metric) => {
      const group = element("optgroup");
      group.label = metric;
      group.append(...choices(scores.filter((score) => score.metric === metric)));
      return group;
    });
  }

  // The sliders of all scores; of several metrics each under its own, and of many those open that a threshold is on.
  function sliders(scores) {
    const metrics = [...new Set(scores.map(({ metric }) => metric))];
    part("scores").classList.toggle("dense", scores.length > FEW);
    for (const [place, metric] of metrics.entries()) {
      const own = scores.filter((score) => score.metric === metric);
      if (metrics.length < 2) return part("scores").append(...own.map(range));
      const group = element("details", "metric");
      group.open = scores.length <= FEW || place === 0 || own.some(({ least }) => least !== null);
      group.dataset.metric = metric;
      group.append(element("summary"), ...own.map(range));
      part("scores").append(group);
    }
  }

  // Two scores to compare: those of the kind in view, and the label; at first those that agree least.
  function between(kind) {
    const on = part("sort").value === APART;
    part("between").hidden = !on;
    for (const [value, text, other] of [["up", "lowest first", "B above A first"], ["down", "highest first", "A above B first"]]) {
      [...part("order").options].find((option) => option.value === value).text = on ? other : text;
    }
    if (!on) {
      if (part("order").value === "far") part("order").value = "up";
      part("order").querySelector("[value=far]")?.remove();
      return;
    }
    if (!part("order").querySelector("[value=far]")) {
      part("order").prepend(new Option("farthest apart first", "far"));
      part("order").value = "far";
    }
    const kinds = Object.keys(set.kinds).filter((one) => kind === "all" || one === kind);
    if (offered !== kind) {
      offered = kind;
      const kept = ["first", "second"].map((id) => part(id).value);
      const scores = [...ranges.values()].filter((score) => score.kinds.some((one) => kinds.includes(one)));
      for (const id of ["first", "second"]) part(id).replaceChildren(...options(scores), new Option("label", "label"));
      const there = (name) => [...part("first").options].some((option) => option.value === name);
      choose(kept[0] && kept.every(there) ? kept : least(kinds));
    }
    const [first, second] = two();
    const known = kinds.map((one) => [set.kinds[one].many, gallery.agreement(one, first, second)]).filter(([, value]) => value !== null);
    const told = known.map(([many, value]) => `${known.length > 1 ? `${many} ` : ""}${value.toFixed(2)}`).join(", ");
    part("between-note").textContent =
      first === second ? "Name two different scores." : told ? `Rank correlation: ${told}. Shown with each is how many of the set are lower.` : "Shown with each is how many of the set are lower.";
  }

  const two = () => ["first", "second"].map((id) => part(id).value);
  const choose = (names) => names.forEach((name, i) => (part(["first", "second"][i]).value = name));

  // Of some kinds the two scores that agree least.
  function least(kinds) {
    const only = set.kinds[kinds[0]].scores[0]?.name ?? "label";
    let found = { value: Infinity, names: [only, "label"] };
    for (const kind of kinds) {
      const names = set.kinds[kind].scores.map(({ name }) => name);
      for (const [place, first] of names.entries()) {
        for (const second of names.slice(place + 1)) {
          const value = gallery.agreement(kind, first, second) ?? 2; // a score that is the same for all comes last
          if (value < found.value) found = { value, names: [first, second] };
        }
      }
    }
    return found.names;
  }

  function range(score) {
    const part = element("fieldset", "range");
    const text = element("output");
    const [legend, called] = [element("legend"), element("span", "", score.name)];
    called.title = score.label || score.name;
    legend.append(called, text);
    const bars = element("div", "bars");
    bars.setAttribute("aria-hidden", "true");
    const step = score.whole ? 1 : (score.high - score.low) / 100;
    const inputs = ["at least", "at most"].map((what, i) => {
      const input = element("input");
      Object.assign(input, { type: "range", min: score.low, max: score.high, step, value: i ? score.high : score.low });
      input.setAttribute("aria-label", `${score.name} ${what}`);
      return input;
    });
    const twin = element("div", "twin");
    twin.append(...inputs);
    part.append(legend, bars, twin);
    if (score.least !== null) {
      const mark = element("span", "least");
      mark.style.left = `${(100 * (score.least - score.low)) / (score.high - score.low || 1)}%`;
      mark.title = `selected from ${score.least}`;
      bars.append(mark);
    }
    ranges.set(score.name, { ...score, part, inputs, bars, text });
    return part;
  }

  // [least, most] of a score where its range is narrowed, else null.
  function limits(score) {
    const [a, b] = score.inputs.map((input) => Number(input.value));
    const [low, high] = [Math.min(a, b), Math.max(a, b)];
    const narrowed = low > score.low || high < score.high;
    score.text.textContent = narrowed ? `${format(low)} – ${format(high)}` : "any";
    score.text.classList.toggle("narrowed", narrowed);
    // Ends of a rounded slider are open: 1.0 is to let 0.9999999 and 1 through.
    return narrowed ? [low <= score.low ? -Infinity : low, high >= score.high ? Infinity : high] : null;
  }

  function apply(options = {}) {
    const words = part("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const [show, kind, wantedLabel] = ["show", "kind", "label"].map((id) => part(id).value);
    const asked = [...ranges.values()].filter((score) => kind === "all" || score.kinds.includes(kind));
    const narrowed = asked.map((score) => [score.name, limits(score)]).filter(([, limit]) => limit);
    const view = [];
    const rows = show === "rejected";
    part("rejected").hidden = !rows;
    part("scroller").hidden = rows;
    if (rows) rejected(words);
    for (const range of ranges.values()) range.part.hidden = kind !== "all" && !range.kinds.includes(kind);
    for (const group of part("scores").querySelectorAll("details")) {
      const there = group.querySelectorAll("fieldset:not([hidden])").length;
      group.hidden = !there;
      group.querySelector("summary").textContent = there > 1 ? `${group.dataset.metric} (${there})` : group.dataset.metric;
    }
    between(kind);
    for (const shard of rows ? [] : set.shards) {
      if (!shard.data || (kind !== "all" && kind !== shard.kind)) continue;
      for (let entry = shard.base; entry < shard.base + shard.count; entry++) {
        if (show === "selected" && !gallery.selected(entry)) continue;
        if (show === "rest" && gallery.selected(entry)) continue;
        if (show === "failed" && !gallery.failure(entry)) continue;
        if (show === "alike" && gallery.alike(entry) === null) continue;
        if (wantedLabel !== "all" && (labels.of(gallery.value(entry, "key")) ?? "none") !== wantedLabel) continue;
        if (narrowed.length && !narrowed.every(([name, [low, high]]) => within(gallery.value(entry, name), low, high))) continue;
        if (words.length && !words.every((word) => gallery.text(entry).includes(word))) continue;
        view.push(entry);
      }
    }
    const by = part("sort").value;
    part("order").disabled = !by;
    const twins = show === "alike";
    const grouped = part("group").checked || twins;
    const groupOf = twins ? gallery.alike : gallery.group;
    if (by) sort(view, by, part("order").value, grouped && groupOf);
    if (twins) together(view);
    grid.show(view, { grouped, groupOf, leading: by === APART ? two() : [by], ranked: by === APART, keep: options.keep === true });
    part("empty").hidden = view.length > 0 || set.loaded === 0;
    part("empty").textContent = "Nothing matches. Loosen a filter, or reset them all.";
    remember();
    tell();
  }

  const within = (value, low, high) => value !== null && low <= value && value <= high;

  // The duplicates of an entry stand beside it, at the place of the first of them.
  function together(view) {
    const first = new Map();
    view.forEach((entry, at) => first.has(gallery.alike(entry)) || first.set(gallery.alike(entry), at));
    view.sort((a, b) => first.get(gallery.alike(a)) - first.get(gallery.alike(b)));
  }

  // Entries without a value come last either way. With entries side by side, groups go by their best one; groupOf: whose they are.
  function sort(view, by, order, groupOf) {
    const down = order !== "up";
    const [first, second] = two();
    const far = (apart) => (apart === null || order !== "far" ? apart : Math.abs(apart));
    const value = {
      label: (entry) => gallery.rank(entry, "label"),
      [APART]: (entry) => far(gallery.apart(entry, first, second)),
    }[by] ?? ((entry) => gallery.value(entry, by));
    const values = new Map(view.map((entry) => [entry, value(entry)]));
    if (groupOf) {
      const best = new Map();
      for (const entry of view) {
        const [group, one] = [groupOf(entry), values.get(entry)];
        const so = best.get(group) ?? null;
        best.set(group, so === null || (one !== null && (down ? one > so : one < so)) ? one : so);
      }
      for (const entry of view) values.set(entry, best.get(groupOf(entry)));
    }
    const sign = down ? -1 : 1;
    view.sort((a, b) => {
      const [x, y] = [values.get(a), values.get(b)];
      if (x === y) return a - b;
      if (x === null || y === null) return x === null ? 1 : -1;
      return sign * (x - y);
    });
  }

  // A shard has arrived: at first at once, then now and again, for every time all is sorted anew.
  function arrived() {
    part("progress").style.transform = `scaleX(${set.total ? set.loaded / set.total : 1})`;
    part("progress").classList.toggle("done", set.loaded === set.total);
    const next = set.shards.find((shard) => !shard.data && shard.count && !set.failed.includes(shard));
    part("more").hidden = !next || next.base < 100000;
    part("more").textContent = `Load more than ${number(set.loaded)}`;
    const act = (options) => (histograms(), count(), apply(options));
    if (!begun) (begun = true), act();
    else if (!timers.has("arrived")) later("arrived", () => act({ keep: true }), 300);
  }

  function later(purpose, act, milliseconds) {
    clearTimeout(timers.get(purpose));
    timers.set(purpose, setTimeout(() => (timers.delete(purpose), act()), milliseconds));
  }

  function histograms() {
    for (const score of ranges.values()) {
      const bins = new Array(score.whole ? Math.min(40, score.high - score.low + 1) : 20).fill(0);
      for (const shard of set.shards) {
        const column = shard.data?.columns.get(score.name);
        if (column === undefined) continue;
        for (const value of Array.isArray(column) ? column : new Array(shard.count).fill(column)) {
          if (value === null) continue;
          const share = (value - score.low) / (score.high - score.low + (score.whole ? 1 : 0) || 1);
          bins[Math.max(0, Math.min(bins.length - 1, Math.floor(share * bins.length)))]++;
        }
      }
      const most = Math.max(1, ...bins);
      const bars = bins.map((count) => {
        const bar = element("i");
        bar.style.height = `${count ? Math.max(4, (100 * count) / most) : 0}%`;
        bar.title = number(count);
        return bar;
      });
      score.bars.replaceChildren(...bars, ...score.bars.querySelectorAll(".least"));
    }
  }

  // The rows that no image was asked for, with file, line and reason; words: that they must hold.
  function rejected(words) {
    const { count, reasons, rows } = set.rejected;
    const found = rows.filter((row) => words.every((word) => row.join("\n").toLowerCase().includes(word)));
    const listed = count > rows.length ? `The first ${number(rows.length)} are listed; ` : "";
    part("rejected-note").textContent = count
      ? `${number(count)} rejected: no image was asked for them. ${listed}rejected.jsonl has them all.`
      : "Every row could be used.";
    part("rejected-reasons").replaceChildren(
      ...(reasons.length < count ? reasons : []).map(([reason, times]) => element("li", "", `${number(times)} × ${reason}`)),
    );
    part("rejected").querySelector("table").hidden = !found.length;
    const lines = found.map((row) => {
      const line = element("tr");
      line.append(...row.map((cell, i) => element("td", i === 3 ? "said" : "", typeof cell === "number" ? number(cell) : cell)));
      return line;
    });
    part("rejected-rows").replaceChildren(...lines);
  }

  function tell() {
    if (part("show").value === "rejected") return say(plural(set.rejected.count, "rejected row"));
    const parts = [`${number(grid.view.length)} of ${number(set.total)} images`];
    parts.push(`${number(grid.view.filter(gallery.selected).length)} selected`);
    if (set.loaded < set.total) parts.push(`${number(set.loaded)} loaded`);
    if (set.failed.length) parts.push(`${set.failed.length} files cannot be read`);
    say(parts.join(" · "));
  }

  const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;

  // How many of what is loaded "Show" would show, and the ways to what went wrong.
  function count() {
    gallery.relabel();
    const counts = { selected: 0, rest: 0, failed: 0, rejected: set.rejected.count, alike: 0 };
    for (const shard of set.shards) {
      for (let entry = shard.base; shard.data && entry < shard.base + shard.count; entry++) {
        counts[gallery.selected(entry) ? "selected" : "rest"]++;
        if (gallery.failure(entry)) counts.failed++;
        if (gallery.alike(entry) !== null) counts.alike++;
      }
    }
    const words = { selected: "selected", rest: "not selected", failed: "failures", rejected: "rejected rows", alike: "duplicates" };
    for (const option of part("show").options) {
      if (option.value in words) option.text = `${words[option.value]} (${number(counts[option.value])})`;
    }
    part("failed-button").hidden = !counts.failed;
    part("failed-button").textContent = plural(counts.failed, "failure");
    part("rejected-button").hidden = !counts.rejected;
    part("rejected-button").textContent = plural(counts.rejected, "rejected row");
  }

  function say(text) {
    part("status").textContent = text;
  }

  function label(entry, name) {
    const key = gallery.value(entry, "key");
    const next = labels.of(key) === name ? null : name;
    problem = labels.put(key, next) ?? problem;
    const done = next === "accept" ? "Accepted" : next === "reject" ? "Rejected" : "Label taken away";
    const selected = `${number(grid.view.filter(gallery.selected).length)} selected`;
    say(problem ?? `${done} · ${selected} · ${gallery.value(entry, "prompt") ?? gallery.value(entry, "row")}`);
  }

  function onLabels() {
    const counts = labels.counts();
    const some = counts.accept + counts.reject;
    part("labelled").textContent = problem ?? (some ? `${number(counts.accept)} accepted, ${number(counts.reject)} rejected` : "No labels yet: A accepts, R rejects.");
    part("export").disabled = !some;
    count();
    grid.relabel();
    detail.refresh();
  }

  function onKey(event) {
    const typing = event.target.closest?.("input:not([type=range],[type=checkbox]), select, textarea");
    if (document.querySelector("dialog[open]") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && event.target === part("search")) return void part("scroller").focus();
    if (typing) return;
    const onGrid = !part("scroller").hidden && (event.target === part("scroller") || event.target === document.body);
    const move = (act) => (onGrid ? act : undefined);
    const mark = (name) => () => grid.view.length && label(grid.view[grid.active], name);
    const act = {
      ArrowLeft: move(() => grid.activate(grid.active - 1)),
      ArrowRight: move(() => grid.activate(grid.active + 1)),
      ArrowUp: move(() => grid.step(-1)),
      ArrowDown: move(() => grid.step(1)),
      PageUp: move(() => grid.step(-grid.page())),
      PageDown: move(() => grid.step(grid.page())),
      Home: move(() => grid.activate(0)),
      End: move(() => grid.activate(grid.view.length - 1)),
      Enter: move(() => grid.view.length && detail.show(grid.view[grid.active])),
      " ": move(() => grid.view.length && detail.show(grid.view[grid.active])),
      a: mark("accept"),
      r: mark("reject"),
      u: mark(null),
      "/": () => part("search").focus(),
      "?": () => part("help").showModal(),
    }[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act) return;
    event.preventDefault();
    if (onGrid) part("scroller").focus({ preventScroll: true });
    act();
  }

  function drawer(open = !document.body.classList.contains("filtering")) {
    document.body.classList.toggle("filtering", open);
    part("filters-button").setAttribute("aria-expanded", String(open));
  }

  function reset() {
    part("search").value = "";
    for (const id of ["show", "kind", "label"]) part(id).value = "all";
    part("sort").value = "";
    part("group").checked = false;
    for (const score of ranges.values()) score.inputs.forEach((input, i) => (input.value = i ? score.high : score.low));
    apply();
  }

  // The view is kept in the address, so that it can be reloaded, and shared with whoever has the same set.
  const KEPT = ["search", "show", "kind", "label", "sort"];

  function remember() {
    const kept = new URLSearchParams();
    for (const id of KEPT) if (part(id).value && part(id).value !== "all") kept.set(id, part(id).value);
    if (part("order").value !== (part("sort").value === APART ? "far" : "up")) kept.set("order", part("order").value);
    if (part("sort").value === APART) ["first", "second"].forEach((id) => kept.set(id, part(id).value));
    if (part("group").checked) kept.set("group", "1");
    for (const [name, { low, high, inputs }] of ranges) {
      const [a, b] = inputs.map((input) => Number(input.value));
      if (a !== low || b !== high) kept.set(`score.${name}`, `${a},${b}`);
    }
    const hash = String(kept);
    history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  }

  function recall() {
    const kept = new URLSearchParams(location.hash.slice(1));
    for (const id of KEPT) {
      const value = kept.get(id);
      if (value !== null && (id === "search" || [...part(id).options].some((option) => option.value === value))) part(id).value = value;
    }
    between(part("kind").value);
    for (const id of ["order", "first", "second"]) {
      if ([...part(id).options].some((option) => option.value === kept.get(id))) part(id).value = kept.get(id);
    }
    part("group").checked = kept.has("group");
    for (const [name, { inputs }] of ranges) {
      const values = kept.get(`score.${name}`)?.split(",").map(Number);
      if (values?.length !== 2 || !values.every(Number.isFinite)) continue;
      inputs.forEach((input, i) => (input.value = values[i]));
      const group = inputs[0].closest("details");
      if (group) group.open = true; // what narrows the view is in sight
    }
  }

  begin();
})();
