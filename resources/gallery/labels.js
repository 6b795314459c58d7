// Labels: accept or reject by image key. Those of the last run come with the index; what is changed here is kept in the
// browser, an item each, so that several tabs can label at once and nothing is lost with a tab.
"use strict";

window.labels = (() => {
  const changes = new Map(); // key -> "accept", "reject" or "" (taken away)
  let prefix = "";
  let onChange = () => {};

  function open(tell) {
    onChange = tell;
    // The place, too: two sets on disk may have the same names of files, and all of the disk is one origin.
    prefix = `darkroom ${gallery.set.set} ${location.pathname.replace(/[^/]*$/, "")} `;
    try {
      for (let i = 0; i < localStorage.length; i++) {
        const name = localStorage.key(i);
        if (name.startsWith(prefix)) changes.set(name.slice(prefix.length), localStorage.getItem(name));
      }
    } catch {
      return "This browser keeps no labels for this page: export them before you close it.";
    }
    addEventListener("storage", (event) => {
      if (!event.key?.startsWith(prefix)) return;
      const key = event.key.slice(prefix.length);
      if (event.newValue === null) changes.delete(key);
      else changes.set(key, event.newValue);
      onChange();
    });
    return null;
  }

  const before = (key) => (Object.hasOwn(gallery.set.labels, key) ? gallery.set.labels[key] : null);
  const of = (key) => (changes.has(key) ? changes.get(key) || null : before(key));
  // Keys whose label is another one than in the last run.
  const changed = () => [...changes.keys()].filter((key) => of(key) !== before(key));

  // Returns what went wrong, else null. The same label again takes it away.
  function put(key, label) {
    changes.set(key, label ?? "");
    onChange();
    try {
      localStorage.setItem(prefix + key, label ?? "");
      return null;
    } catch {
      return "The browser's storage is full: export the labels before you close this page.";
    }
  }

  const cell = (value) => {
    const text = String(value ?? "");
    // A spreadsheet takes such a text for a formula.
    const plain = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",\r\n]/.test(plain) ? `"${plain.replaceAll('"', '""')}"` : plain;
  };

  // Keys that carry a label and are of this set, as far as it is loaded.
  function* labelled() {
    const whole = gallery.set.loaded === gallery.set.total;
    for (const key of new Set([...Object.keys(gallery.set.labels), ...changes.keys()])) {
      if (of(key) && (!whole || gallery.keys.has(key))) yield key;
    }
  }

  // All labels as CSV, those of entries that are loaded with row, sample and prompt.
  function csv() {
    const lines = ["key,label,kind,row,sample,prompt"];
    const left = new Set(labelled());
    for (const shard of gallery.set.shards) {
      for (let entry = shard.base; left.size && shard.data && entry < shard.base + shard.count; entry++) {
        const key = gallery.value(entry, "key");
        if (!left.delete(key)) continue;
        const about = ["row", "sample", "prompt"].map((name) => gallery.value(entry, name));
        lines.push([key, of(key), shard.kind, ...about].map(cell).join(","));
      }
    }
    for (const key of left) lines.push([key, of(key), "", "", "", ""].map(cell).join(","));
    return lines.join("\r\n") + "\r\n";
  }

  function save() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
    link.download = "labels.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }

  function counts() {
    const found = { accept: 0, reject: 0 };
    for (const key of labelled()) found[of(key)]++;
    return found;
  }

  return { open, of, changed, put, csv, save, counts };
})();
