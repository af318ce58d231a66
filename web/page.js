/* The page: one picture in, one answer out, and what was kept before. Everything that comes from
 * the server or a file goes into the document as text, never as markup. */
"use strict";

const $ = (id) => document.getElementById(id);

/* Makes an element: properties, then children (strings become text). */
function make(tag, properties, ...children) {
  const e = Object.assign(document.createElement(tag), properties);
  e.append(...children);
  return e;
}

const state = { models: [], max: Infinity, job: null, photo: null, result: null };

function bytes(n) {
  return n >= 1e9 ? (n / 1e9).toFixed(1) + " GB" : n >= 1e6 ? (n / 1e6).toFixed(1) + " MB"
    : n >= 1e3 ? Math.round(n / 1e3) + " kB" : n + " bytes";
}

function duration(ms) {
  return ms >= 1000 ? (ms / 1000).toFixed(ms >= 10000 ? 0 : 1) + " s" : ms >= 10 ? Math.round(ms) + " ms"
    : ms.toFixed(1) + " ms";
}

function say(text) {
  $("live").textContent = text;
}

/* The words come from the server as they are; the file's name says which one they are about. */
function fail(text, file) {
  $("error").replaceChildren(make("b", {}, file ? file.name : ""), text);
  $("error").hidden = false;
  $("busy").hidden = true;
}

/* A request for JSON; failures throw with the server's own words. */
async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (e) {
    throw new Error("The server cannot be reached.");
  }
  const text = await answer.text();
  if (!answer.ok) throw new Error(words(text, answer.status));
  return text ? JSON.parse(text) : null;
}

/* The text of an error answer: {"error": "…"}, or whatever came. */
function words(text, status) {
  try {
    return JSON.parse(text).error || text;
  } catch (e) {
    return text || "The server answered with status " + status + ".";
  }
}

/* --- models ---------------------------------------------------------------------------------- */

function chosen() {
  return state.models.find((m) => m.name === $("model").value);
}

function describe() {
  const m = chosen();
  $("about").textContent = m ? "answers " + { image: "a picture", labels: "labels", tensor: "numbers" }[m.answer] : "";
  $("about").title = m ? m.picture : "";
}

function showModels(all) {
  $("models").replaceChildren(...all.map((m) => {
    const cells = m.ready
      ? [m.name + " " + m.version, "ready", m.takes_picture ? m.answer : "tensors",
        m.max_batch_size || "–", m.placement === "inline" ? "I/O thread" : "executors", m.requests,
        m.requests ? duration(m.mean_us / 1000) : "–"]
      : [m.name, "not ready: " + m.why, "–", "–", "–", "–", "–"];
    return make("tr", {}, ...cells.map((c) => make("td", {}, String(c))));
  }));
  $("models-box").hidden = all.length === 0;
}

async function loadModels(first) {
  const answer = await ask("/naru/models");
  showModels(answer.models);
  if (!first) return;
  state.max = answer.max_body_bytes;
  state.models = answer.models.filter((m) => m.ready && m.takes_picture);
  $("server").textContent = answer.server + " " + answer.version;
  $("model").replaceChildren(...state.models.map((m) => make("option", { value: m.name }, m.name)));
  const pick = state.models.find((m) => m.name === "derain") || state.models.find((m) => m.answer === "image")
    || state.models[0];
  if (pick) $("model").value = pick.name;
  else fail("None of this server's models takes pictures.");
  $("chooser").hidden = !pick;
  describe();
}

/* --- one picture ----------------------------------------------------------------------------- */

function view(name) {
  const slide = name === "slide";
  $("pair").classList.toggle("slide", slide);
  $("cut").hidden = !slide;
  for (const b of $("views").children) b.setAttribute("aria-pressed", String(b.dataset.view === name));
}

function cut() {
  $("pair").style.setProperty("--cut", $("cut").value + "%");
}

function forget(url) {
  if (url && url.startsWith("blob:")) URL.revokeObjectURL(url);
}

/* Shows a finished pair. what: {before, after (URLs) or rows, caption, facts, name} */
function show(what) {
  if (state.photo !== what.before) forget(state.photo);
  forget(state.result);
  state.photo = what.before;
  state.result = what.after || what.save;
  const picture = Boolean(what.after);
  if (!picture) view("pair");
  $("before").src = what.before;
  $("after-figure").hidden = !picture;
  $("views").hidden = !picture;
  $("numbers").hidden = picture;
  $("save").hidden = !what.after && !what.save;
  $("save").href = what.after || what.save || "";
  $("save").download = what.name;
  if (picture) {
    $("after").src = what.after;
    $("after-caption").textContent = what.caption;
    $("numbers").replaceChildren();
  } else {
    $("after").removeAttribute("src");
    $("numbers").replaceChildren(...what.rows);
  }
  $("facts").replaceChildren(...what.facts);
  $("zone").hidden = true;
  $("busy").hidden = true;
  $("error").hidden = true;
  $("result").hidden = false;
}

function labelRows(labels) {
  return labels.map((l) => {
    const p = "probability" in l;
    const value = p ? l.probability : l.score;
    const bar = make("div", { className: p ? "track" : "" }, make("i", {}));
    bar.firstChild.style.width = (p ? Math.min(value || 0, 1) * 100 : 0) + "%";
    const text = value === null ? "–" : p ? (value * 100).toFixed(1) + " %" : value.toPrecision(4);
    return make("div", { className: "score" }, make("span", {}, l.label), bar, make("span", {}, text));
  });
}

function baseName(file) {
  return (file.name || "picture").replace(/\.[^.]*$/, "");
}

/* The answer has come: XHR's blob, and how long it all took. */
async function finish(job, xhr, ms) {
  const blob = xhr.response;
  const type = (xhr.getResponseHeader("content-type") || "").split(";")[0];
  if (xhr.status !== 200) {
    forget(job.photo);
    fail(words(await blob.text(), xhr.status), job.file);
    return;
  }
  const infer = /dur=([\d.]+)/.exec(xhr.getResponseHeader("server-timing") || "");
  const facts = [make("b", {}, job.model), " answered in " + duration(ms)
    + (infer ? ", the model itself took " + duration(Number(infer[1])) : "")];
  const what = { before: job.photo, facts };
  if (type.startsWith("image/")) {
    what.after = URL.createObjectURL(blob);
    what.caption = "Result of " + job.model;
    what.name = baseName(job.file) + "-" + job.model + "." + type.slice(6).replace("jpeg", "jpg");
  } else {
    const text = await blob.text();
    const answer = type === "application/json" ? JSON.parse(text) : {};
    what.save = URL.createObjectURL(blob);
    what.name = baseName(job.file) + "-" + job.model + ".json";
    what.rows = answer.labels ? labelRows(answer.labels)
      : [make("pre", { tabIndex: 0 }, text.length > 4000 ? text.slice(0, 4000) + " …" : text)];
  }
  if (state.job !== job) return;
  show(what);
  say("Finished in " + duration(ms));
  document.body.dataset.done = job.file.name; /* for tests: this file's answer is on the page */
  if (xhr.getResponseHeader("naru-gallery-id")) loadHistory();
  loadModels(false).catch(() => {});
}

function send(file) {
  const m = chosen();
  if (!m || !file) return;
  if (state.job) state.job.xhr.abort();
  $("error").hidden = true;
  if (file.size > state.max) {
    fail("This file has " + bytes(file.size) + ", the server takes at most " + bytes(state.max) + ".", file);
    return;
  }
  const xhr = new XMLHttpRequest();
  const job = { file, model: m.name, photo: URL.createObjectURL(file), xhr };
  const began = performance.now();
  /* Most answers are there before anybody could read "please wait". */
  const later = setTimeout(() => { $("busy").hidden = false; }, 1000);
  const over = (text) => {
    clearTimeout(later);
    if (state.job !== job) return;
    $("busy").hidden = true;
    if (text) {
      forget(job.photo);
      fail(text, file);
    }
  };
  state.job = job;
  $("doing").textContent = "Sending " + bytes(file.size);
  $("progress").removeAttribute("value");
  xhr.upload.onprogress = (e) => {
    if (e.lengthComputable) $("progress").value = e.loaded / e.total;
  };
  xhr.upload.onload = () => {
    $("progress").removeAttribute("value");
    $("doing").textContent = m.name + " is at work";
  };
  xhr.onload = () => {
    over();
    finish(job, xhr, performance.now() - began).catch((e) => fail(String(e.message || e), file));
  };
  xhr.onerror = () => over("The server ended the connection before it answered.");
  xhr.onabort = () => {
    clearTimeout(later);
    forget(job.photo);
  };
  xhr.responseType = "blob";
  xhr.open("POST", "/v2/models/" + encodeURIComponent(m.name) + "/predict?keep=1");
  xhr.send(file);
}

/* --- what was kept --------------------------------------------------------------------------- */

function openEntry(e) {
  const base = "/naru/gallery/" + e.id;
  show({
    before: base + "/input",
    after: base + "/output",
    caption: "Result of " + e.model,
    name: e.id + "-" + e.model + "." + e.output.type.slice(6).replace("jpeg", "jpg"),
    facts: [make("b", {}, e.model), ", " + new Date(e.time).toLocaleString() + ", the model took " + duration(e.took_ms)],
  });
  $("stage").scrollIntoView({ block: "nearest" });
  $("stage").focus({ preventScroll: true });
}

async function removeEntry(e, item) {
  const next = item.nextElementSibling || item.previousElementSibling;
  try {
    await ask("/naru/gallery/" + e.id, { method: "DELETE" });
    say("Deleted");
    await loadHistory();
    const again = next && document.querySelector('[data-id="' + next.dataset.id + '"] .remove');
    (again || $("stage")).focus({ preventScroll: true });
  } catch (error) {
    fail(error.message);
    loadHistory();
  }
}

function card(e) {
  const when = new Date(e.time).toLocaleString();
  const picture = (side) => make("img", { src: "/naru/gallery/" + e.id + side, alt: "", loading: "lazy", decoding: "async" });
  const open = make("button", { type: "button", className: "open" },
    make("span", { className: "thumbs" }, picture("/input"), picture("/output")),
    make("span", {}, e.model, make("small", {}, when)));
  open.setAttribute("aria-label", "Show " + e.model + ", " + when);
  const remove = make("button", { type: "button", className: "remove", title: "Delete" }, "×");
  remove.setAttribute("aria-label", "Delete " + e.model + ", " + when);
  const item = make("li", {}, open, remove);
  item.dataset.id = e.id;
  open.onclick = () => openEntry(e);
  remove.onclick = () => removeEntry(e, item);
  return item;
}

function retention(g) {
  const days = g.max_age_s ? (g.max_age_s >= 86400 ? Math.round(g.max_age_s / 86400) + " days"
    : duration(g.max_age_s * 1000)) : "";
  return g.count + " kept, " + bytes(g.bytes) + " of " + bytes(g.max_bytes) + "; "
    + (days ? "each for " + days + " at most" : "until there is no room");
}

async function loadHistory() {
  const g = await ask("/naru/gallery?limit=60").catch((e) => ({ enabled: false, why: e.message, entries: [] }));
  $("kept").textContent = !g.enabled ? g.why || "This server keeps no pictures."
    : g.entries.length === 0 ? "Nothing yet. Pictures and results are kept on the server until you delete them or they age."
      : retention(g);
  $("history").replaceChildren(...g.entries.map(card));
  document.body.dataset.history = String(g.entries.length);
}

/* --- ways in --------------------------------------------------------------------------------- */

$("file").onchange = () => {
  send($("file").files[0]);
  $("file").value = ""; /* the same file may be chosen again */
};
document.addEventListener("dragover", (e) => {
  e.preventDefault();
  $("stage").classList.add("over");
});
document.addEventListener("dragleave", (e) => {
  if (!e.relatedTarget) $("stage").classList.remove("over");
});
document.addEventListener("drop", (e) => {
  e.preventDefault();
  $("stage").classList.remove("over");
  send(e.dataTransfer.files[0]);
});
document.addEventListener("paste", (e) => {
  if (e.clipboardData.files.length > 0) send(e.clipboardData.files[0]);
});
$("model").onchange = () => {
  describe();
  if (state.job) send(state.job.file); /* the same photo through the other model */
};
$("cut").oninput = cut;
$("views").onclick = (e) => {
  if (e.target.dataset.view) view(e.target.dataset.view);
};

loadModels(true).catch((e) => fail(e.message));
loadHistory();
