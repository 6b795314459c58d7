// The set: its shards, its entries and their pictures. An entry is known by its number in the order of the rows.
//
// The data are scripts that call gallery.index, gallery.shard and gallery.pack: a page on disk cannot fetch() its
// neighbours, but it can load scripts.
"use strict";

window.gallery = (() => {
  const AT_ONCE = 6;
  const PAGE = 100000; // entries loaded without being asked for more
  const CACHE = (navigator.deviceMemory || 4) * 32e6; // characters of pictures kept in memory
  const OURS =
    /^([a-z]\w*(?:-\w+)?)\/(?:[0-9a-f]{8}-[0-9a-f]{8}\/[0-9a-f]{12}x*-[0-9a-f]{8}\.js\?[0-9a-f]{8}|[0-9a-f]{12}x*\/[0-9a-f]{16}-[tp]\d+\.js)$/;

  const set = { shards: [], total: 0, loaded: 0, kinds: {}, failed: [], models: {}, rejected: { count: 0, reasons: [], rows: [] } };
  const byName = new Map();
  const keys = new Map(); // key -> entry
  const named = new Map(); // kind/row/item/sample -> entry
  const made = new Map(); // the same of a source -> the entries that start from it
  const touched = new Map(); // group -> those of its entries that are selected, where a label has changed since the last run
  const packs = new Map(); // name -> {pictures, size}, the one used last at the end
  const loading = new Set();
  let shardOf = new Uint32Array(0); // entry -> number of its shard
  const wants = { detail: [], grid: [] }; // packs that each part of the page waits for, the large picture first
  let cached = 0;
  let limit = PAGE;
  const tellers = { detail: () => {}, grid: () => {} };
  let onEntries = () => {};

  const trusted = window.trustedTypes?.createPolicy("gallery", {
    createScriptURL(url) {
      const kind = OURS.exec(url)?.[1];
      if (kind && Object.hasOwn(set.kinds, kind)) return url;
      throw new TypeError(`not a file of the gallery: ${url}`);
    },
  });

  function load(url) {
    return new Promise((done, failed) => {
      const script = document.createElement("script");
      script.src = trusted ? trusted.createScriptURL(url) : url;
      script.onload = () => (script.remove(), done());
      script.onerror = () => (script.remove(), failed(new Error(url)));
      document.head.append(script);
    });
  }

  function index(data) {
    const { shards, ...rest } = data;
    Object.assign(set, rest);
    const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    for (const [kind, name, count, version, selected, file, numbers] of shards) {
      const values = Object.entries(numbers).map(([score, text]) => [score, new Float64Array(bytes(text).buffer)]);
      const shard = { kind, name, count, version, file, bits: bytes(selected), values, base: set.total, number: set.shards.length, data: null };
      set.total += count;
      set.shards.push(shard);
      byName.set(`${kind}/${name}`, shard);
    }
    shardOf = new Uint32Array(set.total);
    for (const shard of set.shards) shardOf.fill(shard.number, shard.base, shard.base + shard.count);
  }

  function shard(data) {
    const place = byName.get(`${data.kind}/${data.shard}`);
    if (!place || place.data) return;
    const columns = new Map(Object.entries(data.columns));
    // Scores that are worked out from others come with the index.
    for (const [score, values] of place.values) columns.set(score, Array.from(values, (value) => (Number.isNaN(value) ? null : value)));
    place.data = { ...data, columns };
    // Samples of one prompt stand side by side in the rows' order: the first of them names the group.
    const [rows, items] = [columns.get("row"), columns.get("item")];
    const at = (column, i) => (Array.isArray(column) ? column[i] : column);
    place.groups = new Uint32Array(place.count);
    for (let i = 0; i < place.count; i++) {
      const same = i && at(rows, i) === at(rows, i - 1) && at(items, i) === at(items, i - 1);
      place.groups[i] = same ? place.groups[i - 1] : place.base + i;
    }
    const samples = columns.get("sample");
    for (let i = 0; i < place.count; i++) {
      keys.set(at(columns.get("key"), i), place.base + i);
      named.set(`${data.kind}/${at(rows, i)}/${at(items, i)}/${at(samples, i)}`, place.base + i);
      for (const { kind, name } of parts(place.base + i)) {
        if (kind === null) continue;
        const source = `${kind}/${name}`;
        if (made.has(source)) made.get(source).push(place.base + i);
        else made.set(source, [place.base + i]);
      }
    }
    place.text = new Array(place.count);
    set.loaded += place.count;
  }

  // All shards in order, some at a time; tells after each.
  async function start(tell) {
    onEntries = tell;
    let next = 0;
    const work = async () => {
      while (next < set.shards.length && set.shards[next].base < limit) {
        const one = set.shards[next++];
        if (one.data || !one.count) continue;
        await load(`${one.kind}/${one.file}?${one.version}`).catch(() => set.failed.push(one));
        onEntries();
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, work));
    onEntries();
  }

  function more(tell) {
    limit += PAGE;
    return start(tell);
  }

  const shardAt = (entry) => set.shards[shardOf[entry]];

  function value(entry, name) {
    const place = shardAt(entry);
    const column = place.data.columns.get(name);
    return (Array.isArray(column) ? column[entry - place.base] : column) ?? null;
  }

  // Whether the last run selected an image.
  const kept = (entry) => {
    const place = shardAt(entry);
    const i = entry - place.base;
    return Boolean((place.bits[i >> 3] >> (i & 7)) & 1);
  };

  // Whether an image is selected: as in the last run, and by the same rule where a label of its samples has changed since.
  const selected = (entry) => touched.get(group(entry))?.includes(entry) ?? kept(entry);

  // To be called when labels have changed, or entries come.
  function relabel() {
    touched.clear();
    for (const key of set.byLabel ? labels.changed() : []) {
      if (keys.has(key)) touched.set(group(keys.get(key)), chosen(siblings(keys.get(key))));
    }
  }

  const reaches = (entry, [name, least]) => value(entry, name) !== null && value(entry, name) >= least;
  const labelOf = (entry) => (set.byLabel ? labels.of(value(entry, "key")) : null);

  // Of the samples of a prompt, those that are accepted, and of those that reach every threshold and are not rejected the best.
  function chosen(all) {
    const { thresholds, cuts } = set.kinds[shardAt(all[0]).kind];
    // What further cuts leave hangs on the whole set: it is as the last run had it.
    const fits = cuts ? kept : (one) => thresholds.every((threshold) => reaches(one, threshold));
    const made = all.filter((one) => value(one, "error") === null);
    const accepted = made.filter((one) => labelOf(one) === "accept");
    const others = made.filter((one) => labelOf(one) === null && fits(one));
    if (set.perRow === null || cuts) return [...accepted, ...others];
    const by = thresholds[0]?.[0];
    if (by) others.sort((a, b) => value(b, by) - value(a, by) || a - b);
    return [...accepted, ...others.slice(0, Math.max(0, set.perRow - accepted.length))];
  }

  // Why an image that was made is not selected, in a few words.
  function reasons(entry) {
    if (labelOf(entry) === "reject") return ["it is rejected by its label"];
    const { thresholds, cuts } = set.kinds[shardAt(entry).kind];
    const missed = thresholds.filter((threshold) => !reaches(entry, threshold));
    if (!missed.length) return [cuts ? `a further step of the selection leaves it out (${cuts.join("; ")})` : "other samples of its prompt are kept"];
    return missed.map(([name, least]) => (value(entry, name) === null ? `${name} is missing` : `${name} is below ${least}`));
  }

  const group = (entry) => {
    const place = shardAt(entry);
    return place.groups[entry - place.base];
  };

  // Entries of the same prompt, in order.
  function siblings(entry) {
    const place = shardAt(entry);
    const first = group(entry);
    let last = first;
    while (last + 1 < place.base + place.count && place.groups[last + 1 - place.base] === first) last++;
    return Array.from({ length: last - first + 1 }, (_, i) => first + i);
  }

  // The group of duplicates of an entry, null where it has none.
  const alike = (entry) => set.alike?.[value(entry, "key")] ?? null;

  // The entries of its group, of those that are loaded, in order.
  function twins(entry) {
    const group = alike(entry);
    if (group === null) return [];
    const found = [];
    for (const shard of set.shards) {
      if (!shard.data) continue;
      for (let one = shard.base; one < shard.base + shard.count; one++) if (alike(one) === group) found.push(one);
    }
    return found;
  }

  // Entries of the same prompt by others of several models, of those that are loaded, model by model.
  function rivals(entry) {
    const { kind } = shardAt(entry);
    const [row, item] = ["row", "item"].map((name) => value(entry, name));
    const found = [];
    for (const [other, { of }] of Object.entries(set.kinds)) {
      if (of === undefined || of !== set.kinds[kind].of || other === kind) continue;
      for (let sample = 0; named.has(`${other}/${row}/${item}/${sample}`); sample++) found.push(named.get(`${other}/${row}/${item}/${sample}`));
    }
    return found;
  }

  // What an entry starts from: the name of each, and its kind where it is an image of this run.
  function parts(entry) {
    const several = value(entry, "source_parts");
    if (several !== null) return JSON.parse(several);
    const name = value(entry, "source_name");
    return name === null ? [] : [{ name, kind: value(entry, "source_kind") }];
  }

  // The same, with the entry of each; undefined where that is a file of the user's, or not loaded yet.
  const sources = (entry) => parts(entry).map(({ name, kind }) => ({ name, entry: kind === null ? undefined : named.get(`${kind}/${name}`) }));

  // The entries that start from an entry, of those that are loaded, in order.
  function following(entry) {
    const [row, item, sample] = ["row", "item", "sample"].map((name) => value(entry, name));
    return [...(made.get(`${shardAt(entry).kind}/${row}/${item}/${sample}`) ?? [])].sort((a, b) => a - b);
  }

  // How many of the set's images of its kind an entry's score, or label, is above: 0 the lowest, 1 the highest, null without one.
  // The index has some values of each score at equal distances of rank, or all of them.
  function rank(entry, name) {
    if (name === "label") return { accept: 1, reject: 0 }[labels.of(value(entry, "key"))] ?? null;
    const one = value(entry, name);
    const quantiles = set.kinds[shardAt(entry).kind].scores.find((score) => score.name === name)?.quantiles;
    if (one === null || !quantiles?.length) return null;
    if (quantiles.length === 1) return 0.5;
    const [below, through] = [count(quantiles, (other) => other < one), count(quantiles, (other) => other <= one)];
    let place = (below + through - 1) / 2;
    if (below === through && below > 0 && below < quantiles.length) {
      const [low, high] = quantiles.slice(below - 1);
      place = below - 1 + (one - low) / (high - low);
    }
    return Math.max(0, Math.min(1, place / (quantiles.length - 1)));
  }

  // How many of a list, from its beginning, are as they are asked for.
  function count(list, wanted) {
    let [from, to] = [0, list.length];
    while (from < to) {
      const middle = (from + to) >> 1;
      if (wanted(list[middle])) from = middle + 1;
      else to = middle;
    }
    return from;
  }

  // How far the first of two scores puts an entry above the second, -1 to 1; null where it has not both.
  function apart(entry, first, second) {
    const [one, other] = [rank(entry, first), rank(entry, second)];
    return one === null || other === null ? null : Math.round(1e6 * (one - other)) / 1e6; // equal ones stay in the rows' order
  }

  // The rank correlation of two scores of a kind, null where there is none.
  function agreement(kind, first, second) {
    const { scores, agreement: known } = set.kinds[kind];
    const [a, b] = [first, second].map((name) => scores.findIndex((score) => score.name === name)).sort((x, y) => x - y);
    return a < 0 || a === b ? null : known[a * scores.length - (a * (a + 1)) / 2 + b - a - 1];
  }

  // "failed" where there is no image, "no score" where a question about it has none, else null.
  function failure(entry) {
    const place = shardAt(entry);
    if (value(entry, "error") !== null) return "failed";
    return set.kinds[place.kind].questions.some((question) => value(entry, question.error) !== null) ? "no score" : null;
  }

  function text(entry) {
    const place = shardAt(entry);
    const i = entry - place.base;
    const kind = set.kinds[place.kind];
    const names = ["prompt", "row", "error", "source_name", "key", ...kind.texts];
    for (const question of kind.questions) names.push(question.error);
    return (place.text[i] ??= names.map((name) => value(entry, name) ?? "").join("\n").toLowerCase());
  }

  // A picture, "image" or "source", "thumbnail" or "preview": its place, null where there is none.
  function place(entry, which, size) {
    const shard = shardAt(entry);
    const picture = shard.data.pictures[value(entry, which)];
    if (!picture) return null;
    const [width, height, thumbnail, position, preview, large] = picture;
    const big = size === "preview" && preview !== undefined;
    const name = `${shard.kind}/${shard.name}/${shard.data.content}-${big ? "p" : "t"}${big ? preview : thumbnail}`;
    return { width, height, pack: name, position: big ? large : position };
  }

  // The data: URL of a picture, undefined until its pack is there, null where that cannot be read.
  function url(where) {
    const pack = packs.get(where.pack);
    if (!pack) return undefined;
    packs.delete(where.pack);
    packs.set(where.pack, pack);
    return pack.pictures[where.position] ?? null;
  }

  function pack(name, pictures) {
    const size = pictures.reduce((sum, picture) => sum + picture.length, 0);
    packs.set(name, { pictures, size });
    cached += size;
    for (const [other, { size: less }] of packs) {
      if (cached <= CACHE || other === name) break;
      packs.delete(other);
      cached -= less;
    }
  }

  // Names the packs that a part of the page ("grid", "detail") has in sight, the most urgent first; what that part wanted
  // before and is not yet begun is forgotten. `tell` is called whenever a pack has come, for whichever part.
  function want(who, names, tell) {
    wants[who] = names.filter((name) => !packs.has(name));
    tellers[who] = tell;
    pump();
  }

  function pump() {
    for (const name of [...wants.detail, ...wants.grid]) {
      if (loading.size >= AT_ONCE) return;
      if (loading.has(name) || packs.has(name)) continue;
      loading.add(name);
      load(`${name}.js`)
        .catch(() => pack(name, []))
        .then(() => {
          loading.delete(name);
          for (const tell of Object.values(tellers)) tell();
          pump();
        });
    }
  }

  return { set, keys, index, shard, pack, start, more, shardAt, value, kept, selected, relabel, reasons, group, siblings, rivals, alike, twins, sources, following, rank, apart, agreement, failure, text, place, url, want };
})();
