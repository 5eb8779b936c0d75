// The page: images in, one button, progress, result. The server decodes, aligns and fuses; no data leaves it.
import { Viewer, element } from "/static/viewer.js";

const $ = (id) => document.getElementById(id);
const viewer = new Viewer($("stage"), () => { $("scale").value = `${Math.round(100 * viewer.scale)} %`; $("position").value = 100 * viewer.position; });
let about, files = [], job = null, asked = 0, run = 0, painted = 0; // counters: only the latest run and painting count

const headers = () => (sessionStorage.token ? { Authorization: `Bearer ${sessionStorage.token}` } : {});

class Lost extends Error { message = "The server cannot be reached; check that it is running."; }

async function call(address, options = {}) {
  const answer = await fetch(address, { ...options, headers: { ...headers(), ...options.headers } }).catch(() => { throw new Lost(); });
  if (answer.status === 401 && !$("ask").open) {
    $("wrong").hidden = !sessionStorage.token;
    $("ask").showModal();
    await new Promise((resolve) => $("ask").addEventListener("close", resolve, { once: true }));
    sessionStorage.token = $("token").value;
    return call(address, options);
  }
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => null);
  throw Object.assign(new Error(problem?.detail ?? "The server gave an unexpected response; try again."), { status: answer.status });
}

const attempt = (work) => async (...given) => {
  $("error").hidden = true;
  try { await work(...given); } catch (error) {
    $("error").textContent = error.message;
    $("error").hidden = false;
  }
};
const say = (text) => { $("said").textContent = text; };
// What was assumed about the sources and done to them; open if it is short.
function tell(findings) {
  $("findings").hidden = !findings.length;
  $("findings").open = findings.join(" ").length < 250;
  $("findings").lastChild.replaceChildren(...findings.map((finding) => element("li", "", finding)));
}
// Moves the focus if the element that had it is gone.
const refocus = (id) => { if (!document.activeElement?.offsetParent) $(id).focus({ preventScroll: true }); };
const wait = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

// ---- settings, as the server describes them

function buildSettings() {
  for (const setting of about.settings) {
    const input = setting.choices.length ? element("select") : element("input");
    if (setting.choices.length) {
      if (setting.nullable) input.append(new Option("Automatic", ""));
      for (const { value, label } of setting.choices) input.append(new Option(label, value));
      input.value = setting.default ?? "";
    } else if (setting.kind === "flag") {
      input.type = "checkbox";
    } else {
      input.type = { text: "text", share: "range" }[setting.kind] ?? "number";
      if (setting.minimum !== null) input.min = setting.minimum;
      if (setting.kind === "number") input.step = "any";
      if (setting.kind === "share") Object.assign(input, { max: 1, step: 0.05 });
      input.value = setting.default ?? "";
      input.placeholder = setting.nullable ? "automatic" : "";
    }
    input.id = `set-${setting.name}`;
    const field = element("div", `field ${setting.kind}`);
    const label = element("label");
    const help = element("small", "", setting.help);
    help.id = `help-${setting.name}`;
    input.setAttribute("aria-describedby", help.id);
    label.append(...(setting.kind === "flag" ? [input, setting.label] : [element("span", "", setting.label), input]));
    field.append(label, help);
    $(setting.advanced ? "advanced" : "settings").append(field);
    input.addEventListener("change", attempt(() => changed(setting)));
  }
  changed({ stage: "showing" });
}

function changed({ stage }) {
  $("set-blend").disabled = $("set-palette").value === "none";
  if (stage === "reading") { reset(); return preview(); }
  if (!viewer.fused) return undefined;
  if (stage === "showing") return repaint();
  $("fuse").className = "primary";
  say("The settings have changed; fuse again to apply them.");
  return undefined;
}

// The settings that differ from their defaults: [setting, text].
function chosen() {
  return about.settings.map((setting) => {
    const input = $(`set-${setting.name}`);
    return [setting, setting.kind === "flag" ? String(input.checked) : input.value.trim()];
  }).filter(([setting, text]) => text !== "" && text !== String(setting.default ?? ""));
}

function form() {
  const data = new FormData();
  for (const file of files) data.append("sources", file, file.name);
  return data;
}

// ---- images

async function add(more) {
  if (!more.length) return;
  reset();
  files = [...files, ...more];
  try { await preview(); } catch (error) { files = files.filter((file) => !more.includes(file)); show(); throw error; }
}

async function preview() {
  const mine = ++asked;
  show();
  if (!files.length) return;
  const data = form();
  for (const [setting, text] of chosen()) if (setting.stage === "reading") data.append(setting.name, text);
  say("Reading …");
  let shown;
  try { shown = await (await call("/v1/preview", { method: "POST", body: data })).json(); } finally { say(""); }
  if (mine !== asked) return; // a newer request is in progress
  viewer.sources = shown.sources.map((source) => ({ ...source, url: source.image }));
  viewer.fused = viewer.uncertainty = null;
  viewer.against = 0;
  say(files.length < 2 && viewer.sources.length < 2 ? "Add a second image of the same scene." : "");
  tell(shown.findings);
  show();
  refocus(viewer.sources.length < 2 ? "add" : "fuse");
  await setMode("sides");
}

function show() {
  const working = files.length > 0;
  $("start").hidden = working;
  for (const id of ["work", "side", "restart"]) $(id).hidden = !working;
  document.querySelector("main").classList.toggle("working", working);
  $("fuse").disabled = viewer.sources.length < 2; // one file may hold two
  $("list").replaceChildren(...files.map((file, k) => {
    const item = element("li");
    const source = viewer.sources[k];
    const text = element("span", "", file.name);
    if (source) {
      const image = element("img");
      image.src = source.url;
      image.alt = "";
      item.append(image);
      text.append(element("small", "", `${source.width} × ${source.height}${source.slices ? ` × ${source.slices}` : ""}, ${source.bits} bits, ${source.coloured ? "colour" : "grey"}`));
    }
    const remove = element("button", "quiet", "Remove");
    remove.type = "button";
    remove.setAttribute("aria-label", `Remove ${file.name}`);
    remove.onclick = attempt(async () => { reset(); files.splice(k, 1); viewer.sources.splice(k, 1); await preview(); });
    item.append(text, remove);
    return item;
  }));
}

function setMode(mode) {
  const modes = viewer.modes();
  viewer.mode = modes.some(([name]) => name === mode) ? mode : modes[0]?.[0] ?? "sides";
  $("modes").replaceChildren(...modes.map(([name, label]) => {
    const choice = element("label", "", label);
    const input = element("input");
    Object.assign(input, { type: "radio", name: "mode", value: name, checked: name === viewer.mode });
    input.onchange = attempt(() => choose(name));
    choice.prepend(input);
    return choice;
  }));
  return choose(viewer.mode);
}

async function choose(mode) {
  viewer.mode = mode;
  const pairs = ["swipe", "onion", "checker", "flicker", "difference"].includes(mode);
  const others = viewer.fused ? viewer.sources : viewer.sources.slice(1);
  $("against").replaceChildren(...others.map((source, k) => new Option(source.name, viewer.fused ? k : k + 1)));
  if (!others.some((_, k) => k + (viewer.fused ? 0 : 1) === viewer.against)) viewer.against = viewer.fused ? 0 : 1;
  $("against").value = viewer.against;
  $("against-row").hidden = !pairs || others.length < 2;
  $("position-row").hidden = mode !== "swipe" && mode !== "onion";
  $("position-label").textContent = mode === "onion" ? "Opacity" : "Position";
  await viewer.draw();
  document.querySelector("#modes :checked")?.parentElement.scrollIntoView({ block: "nearest", inline: "center" });
}

// ---- fusing

function reset() {
  run++;
  painted++;
  if (job) call(`/v1/jobs/${job.id}`, { method: "DELETE", keepalive: true }).catch(() => {});
  job = null;
  const shown = viewer.fused;
  viewer.fused = viewer.uncertainty = null;
  if (shown) setMode("sides");
  for (const id of ["have", "metrics", "running", "slice-row"]) $(id).hidden = true;
  $("table").replaceChildren();
  $("fuse").hidden = false;
  $("fuse").textContent = "Fuse";
  $("fuse").className = "primary";
}

async function fuse() {
  reset();
  const mine = run;
  say("");
  const data = form();
  for (const [setting, text] of chosen()) data.append(setting.name, text);
  $("fuse").hidden = true;
  $("running").hidden = false;
  refocus("cancel");
  $("progress").removeAttribute("value"); // indeterminate: nothing is known yet
  let doing = "Sending";
  const since = Date.now();
  const tick = () => { $("doing").textContent = `${doing}, ${Math.round((Date.now() - since) / 1000)} s`; };
  tick();
  const clock = setInterval(tick, 1000);
  try {
    const begun = await (await call("/v1/jobs", { method: "POST", body: data })).json();
    if (mine !== run) { await call(`/v1/jobs/${begun.id}`, { method: "DELETE" }); return; }
    job = begun;
    for await (const status of watch(job.id)) {
      if (mine !== run) return;
      job = status;
      const part = status.total ? status.done / status.total : 0;
      doing = status.state === "queued" ? `Waiting, number ${status.position} in the queue` : part ? `Fusing, ${Math.round(100 * part)} %` : "Fusing";
      tick();
      if (part) $("progress").value = part;
    }
    if (mine !== run || job.state === "cancelled") return;
    if (job.problem) throw new Error(job.problem.detail);
    await result();
  } catch (error) {
    if (mine === run) throw error;
  } finally {
    clearInterval(clock);
    if (mine === run) {
      $("running").hidden = true;
      $("fuse").hidden = false;
      refocus($("have").hidden ? "fuse" : "download");
    }
  }
}

// The job's events until it is over, reconnecting when the connection is lost.
async function* watch(id) {
  for (let lost = 0; lost < 60; lost++) {
    try {
      for await (const status of events(id)) {
        yield status;
        if (!["queued", "running"].includes(status.state)) return;
        lost = 0;
      }
    } catch (error) { if (!(error instanceof Lost)) throw error; }
    await wait(1);
  }
  throw new Lost();
}

async function* events(id) {
  const reader = (await call(`/v1/jobs/${id}/events`)).body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read().catch(() => { throw new Lost(); });
    if (done) return;
    const parts = (text + value).split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").find((line) => line.startsWith("data: "));
      if (data) yield JSON.parse(data.slice(6));
    }
  }
}

async function picture(name, label) {
  const { id, width, height } = job;
  const blob = await (await call(`/v1/jobs/${id}/layers/${name}?slice=${$("slice").value || 0}&${overlay()}`)).blob();
  return { name: label, url: URL.createObjectURL(blob), width, height };
}

const overlay = () => new URLSearchParams({ palette: $("set-palette").value, blend: $("set-blend").value });

async function result() {
  $("slice-row").hidden = !job.slices;
  $("slice").max = Math.max(0, job.slices - 1);
  $("slice").value = Math.floor(job.slices / 2);
  $("format").replaceChildren(...job.formats.map((kind) => new Option(about.formats[kind].slice(1).toUpperCase(), kind)));
  $("have").hidden = false;
  viewer.against = 0;
  $("fuse").textContent = "Fuse again";
  $("fuse").className = "quiet";
  $("tuning").open = false; // the measures move up; the settings are one click away
  say(`Fused in ${job.seconds.toFixed(1)} s.`);
  tell(job.findings);
  await layers(Boolean(job.slices)); // for images, the preview has the same sources
  if (!viewer.fused) return;
  await setMode("result");
  $("stage").scrollIntoView({ block: "nearest" });
  attempt(measures)();
}

// The result with the current palette and blend.
async function repaint() {
  const mine = ++painted;
  const palette = $("set-palette").value;
  const fused = await picture("fused", palette === "none" ? "Fused" : `Fused, ${palette}`);
  if (mine !== painted) return;
  if (viewer.fused) URL.revokeObjectURL(viewer.fused.url);
  viewer.fused = fused;
  if (viewer.mode === "sides" || viewer.mode === "uncertainty") await setMode("result");
  else await viewer.draw();
}

async function layers(all) {
  const mine = ++painted;
  const [fused, uncertainty, ...sources] = await Promise.all([
    picture("fused", "Fused"),
    job.uncertainty ? picture("uncertainty", `Uncertainty, white is ±${(100 * job.uncertainty).toFixed(1)} %`) : null,
    ...(all ? job.names.map((name, k) => picture(`source-${k + 1}`, name)) : []),
  ]);
  if (mine !== painted) return;
  Object.assign(viewer, { fused, uncertainty });
  if (all) viewer.sources = sources.map((source, k) => ({ ...viewer.sources[k], ...source }));
}

async function measures() {
  const { id } = job;
  const rows = await (await call(`/v1/jobs/${id}/metrics?slice=${$("slice").value || 0}`)).json();
  if (job?.id !== id) return;
  const table = element("table");
  table.setAttribute("aria-label", "Measures");
  table.innerHTML = "<thead><tr><th scope=col>Measure</th><th scope=col>Fused</th><th scope=col>Average</th></tr></thead>";
  const body = table.createTBody();
  for (const row of rows.filter(({ value }) => value !== null)) {
    const line = body.insertRow();
    const name = element("th", "", `${row.label} (${row.name})`);
    name.scope = "row";
    name.append(element("small", "", `${row.meaning} ${row.better === "higher" ? "Higher" : "Lower"} is better.`));
    const wins = row.average !== null && (row.better === "higher" ? row.value > row.average : row.value < row.average);
    const value = element("td");
    value.append(element(wins ? "b" : "span", "", row.value.toFixed(2)));
    line.append(name, value, element("td", "", row.average?.toFixed(2) ?? "–"));
  }
  $("table").replaceChildren(table, element("small", "", "Average: the same measure for the plain average of the images. Bold: better than the average."));
  $("metrics").hidden = false;
}

async function download() {
  const kind = $("format").value;
  const blob = await (await call(`/v1/jobs/${job.id}/result?${overlay()}`, { headers: { Accept: kind } })).blob();
  const link = element("a");
  link.href = URL.createObjectURL(blob);
  link.download = `fused${about.formats[kind]}`;
  link.click();
}

async function command() {
  const quoted = (text) => (/^[\w.+=:,/-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
  const path = (name) => quoted(name.startsWith("-") ? `./${name}` : name);
  const options = chosen().flatMap(([setting, text]) => (setting.kind === "flag" ? [setting.option] : [setting.option, quoted(text)]));
  const ending = job && $("format").value ? about.formats[$("format").value] : ".png";
  const text = ["ddfm fuse", ...files.map((file) => path(file.name)), "-o", `fused${ending}`, ...options].join(" ");
  if (navigator.clipboard) await navigator.clipboard.writeText(text);
  else { // over plain HTTP from another machine
    const area = element("textarea", "hidden", text);
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say(`Copied: ${text}`);
}

// ---- event handlers

$("choose").onclick = $("add").onclick = () => $("file").click();
$("file").onchange = attempt(async () => { const more = [...$("file").files]; $("file").value = ""; await add(more); });
$("fuse").onclick = attempt(fuse);
$("cancel").onclick = attempt(async () => { reset(); say("Cancelled."); refocus("fuse"); });
$("download").onclick = attempt(download);
$("command").onclick = attempt(command);
$("restart").onclick = attempt(async () => { reset(); files = []; viewer.sources = []; say(""); show(); refocus("choose"); });
$("against").onchange = attempt(async () => { viewer.against = Number($("against").value); await viewer.draw(); });
$("position").oninput = () => { viewer.position = $("position").value / 100; viewer.place(); };
$("slice").onchange = attempt(async () => { await layers(true); await viewer.draw(); await measures(); });
$("smaller").onclick = () => viewer.zoomBy(0.8);
$("larger").onclick = () => viewer.zoomBy(1.25);
$("fit").onclick = () => viewer.fit();
for (const name of ["settings", "advanced"]) {
  $(name).onsubmit = (event) => { event.preventDefault(); if (!$("fuse").disabled && !$("fuse").hidden) $("fuse").click(); };
}
for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  addEventListener(name, (event) => { event.preventDefault(); document.body.classList.toggle("over", over); });
}
addEventListener("drop", attempt(async (event) => add([...event.dataTransfer.files])));
addEventListener("pagehide", () => { if (!$("running").hidden) reset(); }); // nobody is waiting for the result any more
addEventListener("paste", attempt(async (event) => add([...event.clipboardData.files])));

await attempt(async () => {
  about = await (await call("/v1/about")).json();
  $("takes").textContent = `PNG, JPEG, TIFF, BMP, DICOM, NIfTI, or one radiometric JPEG; up to ${Math.round(about.upload_bytes / 2 ** 20)} MiB.`;
  buildSettings();
  for (const example of about.examples) {
    const button = element("button", "", example.label);
    button.type = "button";
    button.onclick = attempt(async () => {
      const images = await Promise.all(example.sources.map(async (address) =>
        new File([await (await call(address)).blob()], address.split("/").pop(), { type: "image/png" })));
      if (!files.length) await add(images); // otherwise it was clicked twice
    });
    $("examples").append(button);
  }
})();
