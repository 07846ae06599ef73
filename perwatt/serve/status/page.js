// The status page: one stream of events in, tiles, charts and tables out. No library, nothing from elsewhere.
const KEPT = 300;
const seconds = []; // [{id, lasted_s, models, ...}], oldest first
let about = null;
let source = null;
let cursor = null; // the age of the second under the pointer, in seconds

const byId = (id) => document.getElementById(id);
const sum = (numbers) => numbers.reduce((total, each) => total + each, 0);
const largest = (numbers) => numbers.reduce((most, each) => (each !== null && (most === null || each > most) ? each : most), null);
const total = (counts) => sum(Object.values(counts));

function shown(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const places = Math.max(0, digits - 1 - Math.floor(Math.log10(Math.abs(value))));
  return value.toFixed(Math.min(places, 3)).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
}

function element(name, text = "", className = "") {
  const made = document.createElement(name);
  if (text !== "") made.textContent = text;
  if (className) made.className = className;
  return made;
}

// -- the stream ---------------------------------------------------------------------------------------------------

function connect() {
  source = new EventSource("/status/events");
  source.addEventListener("about", (event) => {
    const fresh = JSON.parse(event.data);
    if (about !== null && about.run !== fresh.run) seconds.length = 0; // the server was started again
    about = fresh;
    describe();
  });
  source.addEventListener("second", (event) => {
    const id = Number(event.lastEventId);
    if (seconds.length && id <= seconds[seconds.length - 1].id) return; // seen before a reconnection
    seconds.push({ id, ...JSON.parse(event.data) });
    if (seconds.length > KEPT) seconds.shift();
    if (!document.hidden) window.requestAnimationFrame(draw);
  });
  source.addEventListener("draining", () => setState("shutting down", "lost"));
  source.addEventListener("error", () => setState("no connection, trying again", "lost"));
}

// Browsers allow six streams to a host: a hidden tab gives its own back.
document.addEventListener("visibilitychange", () => {
  if (document.hidden && source) {
    source.close();
    source = null;
  } else if (!document.hidden && !source) connect();
});

function setState(text, kind) {
  const pill = byId("state");
  pill.textContent = text;
  pill.className = `pill ${kind}`;
}

function describe() {
  byId("version").textContent = about.version;
  byId("scope").textContent = about.scope || "";
  byId("limit-key").hidden = about.deadline_ms === null;
  const choice = byId("model");
  const before = choice.value;
  choice.replaceChildren(...about.models.filter((model) => model.photos).map((model) => element("option", model.name)));
  if (before) choice.value = before;
  byId("try").hidden = choice.options.length === 0;
}

// -- figures ------------------------------------------------------------------------------------------------------

function draw() {
  const last = seconds[seconds.length - 1];
  if (!last || !about) return;
  if (last.draining) setState("shutting down", "lost");
  else setState(last.ready ? "ready" : "not ready", last.ready ? "ready" : "");
  const models = Object.entries(last.models);
  if (models.some(([name]) => !about.models.some((model) => model.name === name))) refresh();
  const perSecond = (what) => sum(models.map(([, each]) => what(each))) / last.lasted_s;
  const p99 = largest(models.map(([, each]) => each.p99_ms));
  tiles([
    ["images/s", shown(perSecond((each) => each.images))],
    ["requests/s", shown(perSecond((each) => each.requests))],
    ["p50 ms", shown(largest(models.map(([, each]) => each.p50_ms)))],
    [about.deadline_ms === null ? "p99 ms" : `p99 ms, limit ${shown(about.deadline_ms)}`, shown(p99),
      about.deadline_ms !== null && p99 !== null && p99 > about.deadline_ms],
    ["images waiting", shown(sum(models.map(([, each]) => each.queue)))],
    ["refused/s", shown(perSecond((each) => total(each.refused)))],
    ["connections", shown(last.connections)],
    ...(last.joules === null ? [] : [[`W, ${about.meter}`, shown(last.joules / last.lasted_s)]]),
  ]);
  const series = (what) => seconds.map((second) => what(Object.values(second.models), second));
  chart("images", [series((all, second) => sum(all.map((each) => each.images)) / second.lasted_s)]);
  chart("latency", [series((all) => largest(all.map((each) => each.p50_ms))), series((all) => largest(all.map((each) => each.p99_ms)))], about.deadline_ms, true);
  chart("queue", [series((all) => sum(all.map((each) => each.queue)))]);
  chart("refused", [series((all, second) => sum(all.map((each) => total(each.refused))) / second.lasted_s)]);
  table(models, last);
  batches(models);
}

async function refresh() {
  const answer = await fetch("/status/figures");
  if (answer.ok) {
    about = (await answer.json()).about;
    describe();
  }
}

function tiles(rows) {
  byId("tiles").replaceChildren(
    ...rows.map(([name, value, over]) => {
      const tile = element("li", "", over ? "over" : "");
      tile.append(element("b", value), element("span", name));
      return tile;
    }),
  );
}

function table(models, last) {
  const joules = models.some(([, each]) => each.joules_per_image !== null && each.joules_per_image !== undefined);
  byId("joules-head").hidden = !joules;
  const rows = models.map(([name, each]) => {
    const row = element("tr");
    const refused = {};
    for (const second of seconds)
      for (const [reason, count] of Object.entries(second.models[name]?.refused ?? {})) refused[reason] = (refused[reason] ?? 0) + count;
    const reasons = Object.entries(refused).map(([reason, count]) => `${reason.replaceAll("_", " ")} ${count}`).join(", ");
    row.append(
      element("td", `${name} ${each.version}`),
      element("td", each.ready ? "ready" : "not ready", each.ready ? "good" : "bad"),
      element("td", shown(each.images / last.lasted_s), "number"),
      element("td", shown(each.p50_ms), "number"),
      element("td", shown(each.p99_ms), "number"),
      element("td", shown(each.queue), "number"),
      ...(joules ? [element("td", shown(each.joules_per_image), "number")] : []),
      element("td", reasons || "none", reasons ? "text" : "soft"),
    );
    return row;
  });
  document.querySelector("#models tbody").replaceChildren(...rows);
}

function batches(models) {
  const counts = {};
  for (const [, each] of models)
    for (const [size, count] of Object.entries(each.batches)) counts[size] = (counts[size] ?? 0) + count;
  const rows = Object.entries(counts).sort((a, b) => a[0] - b[0]);
  const most = largest(rows.map(([, count]) => count)) ?? 1;
  byId("batches").replaceChildren(
    ...(rows.length ? rows : []).flatMap(([size, count]) => {
      const bar = element("progress");
      bar.max = most;
      bar.value = count;
      bar.setAttribute("aria-label", `batches of ${size}`);
      return [element("span", size === "1" ? "1 image" : `${size} images`), bar, element("span", String(count))];
    }),
    ...(rows.length ? [] : [element("span", "none", "soft")]),
  );
}

// -- charts -------------------------------------------------------------------------------------------------------

function mark(name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  return made;
}

function roundUp(value) {
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((step) => step * unit).find((step) => step >= value * 0.999);
}

// Latencies spread over decades, and the slow ones are what counts: their axis is logarithmic.
function scale(lines, limit, logarithmic) {
  const most = largest([...lines.flat(), limit]) ?? 0;
  if (!logarithmic) {
    const end = roundUp(Math.max(most, 1e-3));
    return { ticks: [0, 0.5, 1].map((share) => share * end), share: (value) => value / end };
  }
  const least = lines.flat().reduce((low, each) => (each !== null && each < low ? each : low), limit ?? most) || 1;
  const first = Math.floor(Math.log10(least)), last = Math.max(Math.ceil(Math.log10(most || 10)), first + 1);
  const ticks = Array.from({ length: last - first + 1 }, (_, step) => 10 ** (first + step));
  return { ticks, share: (value) => (Math.log10(value) - first) / (last - first) };
}

function chart(id, lines, limit = null, logarithmic = false) {
  const place = byId(id);
  const width = Math.max(place.clientWidth, 200), height = 144, left = 44, bottom = 18, top = 8;
  const { ticks, share } = scale(lines, limit, logarithmic);
  const x = (age) => left + (width - left - 4) * (1 - age / KEPT);
  const y = (value) => top + (height - top - bottom) * (1 - share(value));
  const floor = height - bottom;
  const picture = mark("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": place.parentElement.querySelector("figcaption").textContent });
  for (const tick of ticks) {
    picture.append(mark("line", { class: "grid", x1: left, x2: width - 4, y1: y(tick), y2: y(tick) }));
    picture.append(mark("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, shown(tick)));
  }
  for (const age of [300, 200, 100, 0])
    picture.append(mark("text", { x: x(age), y: height - 3, "text-anchor": age === 300 ? "start" : age ? "middle" : "end" }, age ? `−${age} s` : "now"));
  if (limit !== null) picture.append(mark("line", { class: "limit", x1: left, x2: width - 4, y1: y(limit), y2: y(limit) }));
  lines.forEach((values, index) => {
    let path = "", pen = false;
    values.forEach((value, place) => {
      const age = values.length - 1 - place;
      if (value === null) pen = false;
      else {
        path += `${pen ? "L" : "M"}${x(age).toFixed(1)} ${y(value).toFixed(1)}`;
        pen = true;
      }
    });
    if (lines.length === 1 && path)
      picture.append(mark("path", { class: "area", d: `${path}L${x(0)} ${floor}L${x(values.length - 1)} ${floor}Z` }));
    picture.append(mark("path", { class: `line ${index ? "second" : "first"}`, d: path }));
  });
  place.onpointermove = (event) => {
    const box = place.getBoundingClientRect();
    const along = (((event.clientX - box.left) * width) / box.width - left) / (width - left - 4);
    cursor = Math.min(Math.max(Math.round(KEPT * (1 - along)), 0), KEPT - 1);
    draw();
  };
  if (cursor !== null && cursor < lines[0].length) {
    const values = lines.map((line) => shown(line[line.length - 1 - cursor])).join(" · ");
    picture.append(mark("line", { class: "cursor", x1: x(cursor), x2: x(cursor), y1: top, y2: height - bottom }));
    picture.append(mark("text", { x: x(cursor) + (cursor < 60 ? -6 : 6), y: top + 9, "text-anchor": cursor < 60 ? "end" : "start" }, values));
  }
  place.onpointerleave = () => {
    cursor = null;
    draw();
  };
  place.replaceChildren(picture);
}

// -- a photograph -------------------------------------------------------------------------------------------------

async function classify(file) {
  const preview = byId("preview"), labels = byId("labels"), timing = byId("timing");
  if (preview.src) URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.hidden = false;
  labels.replaceChildren();
  timing.textContent = "waiting";
  const path = `/v2/models/${encodeURIComponent(byId("model").value)}/classify`;
  try {
    const answer = await fetch(path, { method: "POST", body: file, headers: { "content-type": "application/octet-stream" } });
    const content = await answer.json();
    if (!answer.ok) {
      timing.textContent = content.error;
      return;
    }
    labels.replaceChildren(
      ...content.labels.map((row) => {
        const item = element("li", row.label ?? `class ${row.index}`);
        item.append(element("span", shown(row.score)));
        return item;
      }),
    );
    timing.textContent = (answer.headers.get("server-timing") ?? "").replaceAll(";dur=", " ").replaceAll(",", " ms,") + " ms";
  } catch {
    timing.textContent = "the server did not answer";
  }
}

byId("photo").addEventListener("change", (event) => event.target.files.length && classify(event.target.files[0]));
const drop = byId("drop");
drop.addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  if (event.dataTransfer.files.length) classify(event.dataTransfer.files[0]);
});
connect();
