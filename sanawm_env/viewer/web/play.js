// The page of `sanawm play`: hands to the server, frames from it. What can be done is in session.py and playback.py.

import { CameraMap } from "./map.js";
import { TimeTree, color } from "./time.js";

const $ = (id) => document.getElementById(id);
const KEYS = { ArrowUp: "i", ArrowDown: "k", ArrowLeft: "j", ArrowRight: "l", ı: "i", İ: "i" };
const AXES = [["right", 0], ["down", 1], ["forward", 2], ["look up", 3], ["turn", 4], ["roll", 5]];
const LOOK = 160;  // pixels of a drag that turn at full speed
const AGAIN = 1000;  // milliseconds until a lost connection is tried again
const BEAT = 5000;  // milliseconds between two signs of life
const OPEN = 1;  // state of a WebSocket
const QUIET = 3;  // beats without an answer after which a connection is lost
const FRAME = 1000 / 16;
const MOST = 120;  // frames that wait to be drawn
const JUMP = 2000;  // milliseconds by which clocks do not drift apart
const TOASTS = 4, NOTES = 40;

const nodes = new Map();
let hello = null, socket = null, shown = null, number = 0, comparing = false, driver = null;

// --- the connection ---

const live = new URL("live", document.baseURI);
live.protocol = live.protocol === "https:" ? "wss:" : "ws:";
let quiet = 0, again = null, failures = 0;

function connect() {
  clearTimeout(again);
  if (socket) return;
  const mine = socket = new WebSocket(live);
  quiet = 0;
  mine.binaryType = "arraybuffer";
  mine.onopen = () => {
    failures = 0; nodes.clear(); offsets.length = 0;
    link("connected", "on");
    number += 1; hands(); look();
  };
  mine.onmessage = ({ data }) => { quiet = 0; if (typeof data === "string") hear(JSON.parse(data)); else receive(data); };
  mine.onclose = () => lost(mine);
}

function lost(mine) {
  if (socket !== mine) return;
  socket = mine.onopen = mine.onmessage = null;
  mine.close();
  link("connection lost, trying again", "off");
  failures += 1;
  if (failures === 3 && !hello && !/^(localhost|[\d.]+|\[.*\])$/.test(location.hostname)) note(`No connection. Behind a proxy, start the page with: sanawm play --allow-host ${location.hostname}`, "error");
  again = setTimeout(connect, AGAIN);
}

// A connection that sleep or a network has cut says nothing: one that does not answer for some beats is given up.
function beat() {
  if (!socket) return;
  if (quiet >= QUIET) { lost(socket); return; }
  quiet += 1;
  say({ type: "here" });
}

function look() { say({ type: "look", on: !document.hidden }); }
function link(text, kind) { $("link").textContent = text; $("link").className = `chip ${kind}`; }
function say(message) {
  if (socket?.readyState !== OPEN) return false;
  socket.send(message instanceof Uint8Array ? message : JSON.stringify(message));
  return true;
}
function ask(what, more = {}) { if (!say({ type: "do", what, ...more })) note("No connection to the server: try again when it is back.", "error"); }

window.addEventListener("online", connect);
window.addEventListener("pageshow", (event) => { if (event.persisted) connect(); });
document.addEventListener("visibilitychange", () => {
  if (document.hidden) letGo();
  offsets.length = 0; lastDrawn = null;  // clocks may have slept
  look();
});

function hear(message) {
  if (message.type === "hello") greet(message);
  else if (message.type === "tree") grow(message);
  else if (message.type === "futures") map.imagine(message.futures);
  else if (message.type === "note") note(message.text, message.kind, message.link);
}

// --- frames: a schedule of frames and when they are due ---

// A canvas and the frame in it: drawn at its own size, then enlarged by the browser's best filter to the screen's pixels.
class Screen {
  constructor(canvas) {
    this.canvas = canvas; this.frame = document.createElement("canvas");
    this.canvasPen = canvas.getContext("2d"); this.framePen = this.frame.getContext("2d");
    new ResizeObserver(() => this.enlarge()).observe(canvas);
  }

  draw(frame) {
    if (this.frame.width !== frame.width || this.frame.height !== frame.height) {
      this.frame.width = frame.width; this.frame.height = frame.height;
      this.canvas.closest("main, dialog").style.setProperty("--aspect", frame.width / frame.height);
    }
    this.framePen.drawImage(frame, 0, 0);
    this.enlarge();
  }

  enlarge() {
    const { canvas, frame } = this, fit = Math.min(canvas.clientWidth / frame.width, canvas.clientHeight / frame.height);
    const [width, height] = [frame.width, frame.height].map((side) => Math.max(1, Math.round(side * fit * devicePixelRatio)));
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    this.canvasPen.imageSmoothingQuality = "high";
    this.canvasPen.drawImage(frame, 0, 0, width, height);
  }
}

const view = $("view"), screens = { view: new Screen(view), both: new Screen($("both")) };
const offsets = [];  // our clock minus the server's, as messages arrive; the least delayed one is the truest
let schedule = [], lastDrawn = null, decoding = Promise.resolve();
export const figures = { latencies: [], stalls: [0], gaps: [], drawn: 0 };
const waiting = [];  // keys that went down: their number, and when

function unpack(data) {
  const length = new DataView(data).getUint32(0);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  let end = 4 + length;
  const images = head.sizes.map((size) => {
    end += size;
    return createImageBitmap(new Blob([new Uint8Array(data, end - size, size)]));
  });
  return [head, images];
}

function receive(data) {
  const [head, images] = unpack(data);
  if (head.type === "compare") { Promise.all(images).then((frames) => compare(head, frames)); return; }
  const offset = performance.now() - 1000 * head.now;
  if (offset - Math.min(...offsets) > JUMP) offsets.length = 0;
  offsets.push(offset);
  if (offsets.length > 40) offsets.shift();
  decoding = decoding.then(() => Promise.all(images)).then((frames) => {
    const starts = 1000 * head.starts + Math.min(...offsets, offset);
    const due = (i) => starts + (head.first + i) * FRAME;
    drop(schedule.filter((entry) => entry.due >= due(0) - 1));
    schedule = schedule.filter((entry) => entry.due < due(0) - 1);
    frames.forEach((frame, i) => schedule.push({
      due: due(i), frame, node: head.node, index: head.first + i, answers: head.answers,
    }));
    tidy();
  }).catch(() => {});  // a frame that cannot be read is left out
}

function drop(entries) { for (const { frame } of entries) frame.close(); }

// Nobody draws in a page that is hidden: what is over, but for the newest, goes, and so does what is too much.
function tidy() {
  const now = performance.now(), late = schedule.filter((entry) => entry.due <= now).length - 1;
  drop(schedule.splice(0, Math.max(0, late, schedule.length - MOST)));
}

function draw() {
  const now = performance.now();
  tidy();
  const entry = schedule[0]?.due <= now ? schedule.shift() : null;
  if (entry) {
    screens.view.draw(entry.frame);
    entry.frame.close();
    measure(entry, now);
    lastDrawn = { at: now, node: entry.node, index: entry.index, held: held().size > 0 };
    view.dataset.node = entry.node; view.dataset.frame = entry.index;
    if (shown !== entry.node) { shown = entry.node; describe(); }
  }
  map.draw();
  requestAnimationFrame(draw);
}

function measure(entry, now) {
  figures.drawn += 1;
  while (waiting.length && waiting[0].number <= entry.answers) figures.latencies.push(now - waiting.shift().at);
  if (lastDrawn?.held && held().size) {
    const gap = now - lastDrawn.at;
    figures.gaps.push(gap);
    figures.stalls.push(Math.max(0, gap - FRAME));
  }
  for (const list of [figures.latencies, figures.stalls, figures.gaps]) if (list.length > 5000) list.splice(0, 1000);
}

function tell() {
  const sorted = [...figures.latencies].sort((a, b) => a - b);
  const at = (share) => Math.round(sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))]);
  $("latency").textContent = sorted.length ? `${at(0.5)} · ${at(0.95)} ms` : "–";
  $("stall").textContent = figures.gaps.length ? `${Math.round(Math.max(...figures.stalls))} ms` : "–";
}

// --- hands: keys, buttons, sliders, dragging ---

const pressed = new Map();  // what is pressed (a key's code, or a pointer) -> key
const held = () => new Set(pressed.values());
let look6 = [0, 0], twist = [0, 0, 0, 0, 0, 0], sent = "";

function hands() {
  const keys = [...held()].sort().join("");
  say({ type: "keys", held: keys, number });
  sent = keys;
  for (const button of $("pad").children) button.classList.toggle("down", keys.includes(button.dataset.key));
}

function down(source, key, when) {
  if (pressed.get(source) === key) return;
  const fresh = !held().has(key);
  pressed.set(source, key);
  if (!fresh) return;
  number += 1;
  waiting.push({ number, at: when });
  map.imagine([]);
  learned();
  hands();
}

function up(...sources) {
  if (!sources.filter((source) => pressed.delete(source)).length) return;
  number += 1;
  if ([...held()].sort().join("") !== sent) hands();
}

// Whatever is held: nobody may tell us any more that it is let go.
function letGo() { up(...pressed.keys()); release(); }

// A letter counts by what it is on layouts that have Latin letters, wherever it lies; on others (Cyrillic, Greek, Hebrew,
// Korean), for dead keys and input methods, the place of the key counts.
function keyOf({ key = "", code = "" }) {
  const typed = key.normalize("NFKC"), placed = /^Key([A-Z])$/.exec(code)?.[1] ?? "";
  const named = /^[A-Z][A-Za-z0-9]+$/.test(key) && !["Dead", "Process", "Unidentified"].includes(key);
  const letter = KEYS[key] ?? (named ? "" : /^\p{Script=Latin}$/u.test(typed) ? typed : placed).toLowerCase();
  return /^[wasdijkl]$/.test(letter) ? letter : null;
}

const source = (event) => event.code || event.key?.toLowerCase();
const range = (target) => target.type === "range";
const typing = ({ target }) => target.isContentEditable
  || (target.matches?.("input, textarea, select") && !range(target) && target.type !== "checkbox");

window.addEventListener("keydown", (event) => {
  if (event.metaKey || event.key === "Meta") { letGo(); return; }  // macOS tells of no key that is let go meanwhile
  if (event.defaultPrevented || event.isComposing || typing(event) || $("comparison").open) return;
  if (event.ctrlKey || event.altKey || event.getModifierState?.("AltGraph")) return;
  if (range(event.target) && event.key?.startsWith("Arrow")) return;
  if (event.key === "Backspace") { event.preventDefault(); if (!event.repeat) back(); return; }
  const chosen = event.key === " " || event.key === "Enter" ? event.target.dataset?.key : null;  // a button of the pad
  const key = chosen ?? keyOf(event);
  if (!key) return;
  event.preventDefault();
  if (!event.repeat) down(source(event), key, performance.now());
});
window.addEventListener("keyup", (event) => { if (event.key === "Meta") letGo(); else up(source(event)); });
for (const kind of ["blur", "pagehide", "dragenter"]) window.addEventListener(kind, letGo);
window.addEventListener("contextmenu", (event) => { if (!event.defaultPrevented) letGo(); });

for (const button of $("pad").children) {
  button.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    button.setPointerCapture(event.pointerId);
    down(event.pointerId, button.dataset.key, performance.now());
  });
  for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) button.addEventListener(end, (event) => up(event.pointerId));
  button.addEventListener("contextmenu", (event) => event.preventDefault());
}

const sliders = AXES.map(([name, axis]) => {
  const label = document.createElement("label"), slider = document.createElement("input");
  Object.assign(slider, { type: "range", min: -1, max: 1, step: 0.05, value: 0 });
  slider.dataset.axis = axis;
  slider.addEventListener("input", () => { twist[axis] = Number(slider.value); push(); });
  slider.addEventListener("change", () => { if (!$("stay").checked) { slider.value = 0; twist[axis] = 0; push(); } });
  slider.addEventListener("dblclick", () => { slider.value = 0; twist[axis] = 0; push(); });
  label.append(name, slider); $("sliders").append(label);
  return slider;
});
$("stay").addEventListener("change", () => { if (!$("stay").checked) { sliders.forEach((s) => { s.value = 0; }); twist.fill(0); push(); } });

function push() {
  const now = [...twist];
  now[3] += look6[1]; now[4] += look6[0];
  number += 1;
  say({ type: "push", twist: now.map((v) => Math.min(1, Math.max(-1, v))), number });
}

let grip = null, lastPush = 0;
function release() { if (grip) { grip = null; look6 = [0, 0]; push(); } }
view.addEventListener("pointerdown", (event) => {
  if (grip || event.button) return;
  view.focus();
  learned();
  grip = [event.clientX, event.clientY, event.pointerId];
  view.setPointerCapture(event.pointerId);
});
view.addEventListener("pointermove", (event) => {
  if (event.pointerId !== grip?.[2] || performance.now() - lastPush < 60) return;
  lastPush = performance.now();
  const quarter = (v) => Math.round(4 * Math.min(1, Math.max(-1, v))) / 4;  // few steps: every change is predicted again
  const wanted = [quarter((event.clientX - grip[0]) / LOOK), quarter((grip[1] - event.clientY) / LOOK)];
  if (wanted[0] !== look6[0] || wanted[1] !== look6[1]) { look6 = wanted; map.imagine([]); push(); }
});
for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) view.addEventListener(end, (event) => { if (event.pointerId === grip?.[2]) release(); });

// --- the hint, until somebody has driven in this browser ---

function learned() {
  if ($("hint").hidden) return;
  $("hint").hidden = true;
  try { localStorage.setItem("sanawm-learned", "yes"); } catch { /* a browser that stores nothing shows it again */ }
}
try { $("hint").hidden = localStorage.getItem("sanawm-learned") !== null; } catch { $("hint").hidden = false; }

// --- time and space ---

const map = new CameraMap($("map"), (node) => ask("restore", { node }));
const tree = new TimeTree($("tree"), $("edges"), (node, event) => pick(node, event.shiftKey));

function grow(message) {
  for (const id of message.gone) nodes.delete(id);
  for (const node of message.nodes) nodes.set(node.id, { ...nodes.get(node.id), ...node });
  if (!nodes.has(shown)) shown = message.current;
  driver = message.driver;
  $("driving").hidden = !driver;
  $("driving").firstChild.textContent = driver ?? "";
  $("viewers").hidden = message.viewers < 2; $("viewers").textContent = `${message.viewers} viewers`;
  const { here, disk, limit, away, count } = message.memory;
  $("memory").textContent = `${count} node${count === 1 ? "" : "s"} · ${bytes(here)} of ${bytes(limit)}${away ? ` · ${away} on disk, ${bytes(disk)}` : ""}`;
  describe();
}

function bytes(n) { return n < 1e9 ? `${(n / 1e6).toFixed(n < 1e7 ? 1 : 0)} MB` : `${(n / 1e9).toFixed(1)} GB`; }

function root(node) { while (node && node.parent !== null) node = nodes.get(node.parent); return node?.id; }

function describe() {
  const node = nodes.get(shown);
  tree.show(nodes, shown);
  if (!node) return;
  const start = root(node), here = [...nodes.values()].filter((n) => root(n) === start);
  const lines = here.filter((n) => nodes.has(n.parent)).map((n) => {
    const p = nodes.get(n.parent).pose;
    return { points: [[p[0][3], p[1][3], p[2][3]], ...n.path], color: color(n.branch), width: n.branch === node.branch ? 3 : 1.8 };
  });
  const cameras = here.map((n) => ({ id: n.id, pose: n.pose, color: color(n.branch), big: n.id === shown }));
  map.show(lines, cameras, hello.size[1] / hello.size[0], Math.tan(hello.fov * Math.PI / 360));
  $("where").textContent = `${node.name || node.scene} · chunk ${node.chunk}${node.move ? ` · ${node.move}` : ""}`;
  const [x, y, z] = [node.pose[0][3], node.pose[1][3], node.pose[2][3]];
  $("pose").textContent = `x ${x.toFixed(2)}  y ${y.toFixed(2)}  z ${z.toFixed(2)} m`;
  if (document.activeElement !== $("name")) $("name").value = node.name;
  $("pin").textContent = node.pinned ? "Unpin" : "Pin"; $("pin").classList.toggle("on", node.pinned);
  $("reseed").disabled = $("back").disabled = node.parent === null;
  $("about").textContent = `node ${node.id} · seed …${node.seed.slice(-6)}`;
  $("branchname").textContent = node.name || (node.move ? `chunk ${node.chunk}, ${node.move}` : node.scene);
}

function pick(node, shift) {
  if (comparing || shift) {
    comparing = false; $("compare").classList.remove("on"); $("compare").textContent = "Compare with…";
    ask("compare", { left: shown, right: node });
  } else ask("restore", { node });
}

function back() { const node = nodes.get(shown); if (node && node.parent !== null) ask("restore", { node: node.parent }); }

$("back").onclick = back;
$("pin").onclick = () => ask("pin", { node: shown, on: !nodes.get(shown)?.pinned });
$("reseed").onclick = () => ask("reseed", { node: shown });
$("delete").onclick = () => ask("delete", { node: shown });
$("compare").onclick = () => { comparing = !comparing; $("compare").classList.toggle("on", comparing); $("compare").textContent = comparing ? "Click the other node" : "Compare with…"; };
$("name").onchange = () => ask("rename", { node: shown, name: $("name").value });
$("name").onkeydown = (event) => { if (event.key === "Enter") $("name").blur(); };

function compare(head, frames) {
  const both = $("both"), begin = performance.now();
  $("left").textContent = head.left; $("right").textContent = head.right;
  $("comparison").showModal();
  (function step() {
    if (!$("comparison").open) { for (const frame of frames) frame.close(); return; }
    const i = Math.floor((performance.now() - begin) / FRAME) % frames.length;
    screens.both.draw(frames[i]);
    both.dataset.frame = i;
    $("likeness").textContent = `frame ${i + 1} of ${frames.length} after the branches part · PSNR ${head.psnr[i]} dB`;
    requestAnimationFrame(step);
  })();
}

// --- panels ---

for (const tab of $("tabs").children) tab.onclick = () => {
  for (const other of document.querySelectorAll("#tabs .on, #panels .on")) other.classList.remove("on");
  tab.classList.add("on");
  document.querySelector(`[data-panel=${tab.dataset.tab}]`).classList.add("on");
};

function greet(message) {
  hello = message;
  nodes.clear(); map.imagine([]); drop(schedule); schedule = [];
  $("worlds").replaceChildren(...message.worlds.map((name) => new Option(name, name, false, name === message.world)));
  $("world").textContent = message.world;
  $("prompt").disabled = $("follow").disabled = !message.prompts;
  if (!message.prompts) $("prompt").placeholder = "takes no prompt";
  if (!$("fov").value) $("fov").placeholder = Math.round(message.fov);
  $("scenes").replaceChildren(...message.scenes.map((name, i) => {
    const button = document.createElement("button"), image = document.createElement("img");
    button.type = "button"; button.title = name; button.dataset.scene = i;
    image.loading = "lazy"; image.alt = name; image.src = `scenes/${i}`;
    button.append(image);
    button.onclick = () => ask("begin", { scene: i, ...camera() });
    return button;
  }));
  $("drivers").replaceChildren(...message.drivers.map((name) => Object.assign(document.createElement("option"), { value: name })));
  $("driverlist").replaceChildren(...message.drivers.map((name) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: name });
    button.onclick = () => { $("driver").value = name; ask("drive", { driver: name }); };
    return button;
  }));
}

$("worlds").onchange = () => {
  const name = $("worlds").value;
  letGo();
  $("worlds").value = hello.world;
  if (confirm(`Open the world ${name}? This session ends for all viewers. Save it first to keep it.`)) ask("world", { name });
};

$("follow").onclick = () => ask("prompt", { prompt: $("prompt").value });

function camera() { return { prompt: $("prompt").value, fov: $("fov").value ? Number($("fov").value) : null }; }

async function upload(file) {
  if (!file) return;
  if (!["image/png", "image/jpeg", "image/webp"].includes(file.type)) { note("This file is not a PNG, JPEG or WebP image: drop one of these.", "error"); return; }
  if (file.size > hello.upload) { note(`The image takes ${(file.size / 2 ** 20).toFixed(1)} MB, ${hello.upload / 2 ** 20} are accepted: make it smaller.`, "error"); return; }
  const head = new TextEncoder().encode(JSON.stringify({ name: [...file.name].slice(0, 80).join(""), ...camera() }));
  let data = null;
  try { data = new Uint8Array(await file.arrayBuffer()); } catch { note("This file cannot be read: choose another one.", "error"); return; }
  const message = new Uint8Array(4 + head.length + data.length);
  new DataView(message.buffer).setUint32(0, head.length);
  message.set(head, 4); message.set(data, 4 + head.length);
  if (!say(message)) note("No connection to the server: try again when it is back.", "error");
}

$("image").onchange = () => { upload($("image").files[0]); $("image").value = ""; };
for (const kind of ["dragenter", "dragover"]) window.addEventListener(kind, (event) => { event.preventDefault(); $("stage").classList.add("dropping"); });
for (const kind of ["dragleave", "drop"]) window.addEventListener(kind, (event) => {
  event.preventDefault();
  if (kind === "drop" || !event.relatedTarget) $("stage").classList.remove("dropping");
  if (kind === "drop") upload(event.dataTransfer.files[0]);
});

$("drive").onclick = () => ask("drive", { driver: $("driver").value.trim() });
$("undrive").onclick = () => ask("drive", { driver: "" });
$("mp4").onclick = () => ask("record", { node: shown, kind: "mp4" });
$("episode").onclick = () => ask("record", { node: shown, kind: "episode" });
$("save").onclick = () => ask("save", { name: $("sessionname").value.trim() });
$("open").onclick = () => ask("open", { name: $("sessionname").value.trim() });

function note(text, kind = "note", href = null) {
  const fill = (box) => {
    box.textContent = text + " ";
    if (href) box.append(Object.assign(document.createElement("a"), { href: new URL(href, document.baseURI).pathname, textContent: "Download", download: "" }));
    return box;
  };
  const toast = fill(Object.assign(document.createElement("div"), { className: kind }));
  $("toasts").append(toast);
  while ($("toasts").children.length > TOASTS) $("toasts").firstChild.remove();
  setTimeout(() => toast.remove(), kind === "error" ? 9000 : 5000);
  if (kind === "note") $("notes").prepend(fill(document.createElement("div")));
  while ($("notes").children.length > NOTES) $("notes").lastChild.remove();
}

window.sanawm = { figures, nodes, screens, schedule: () => schedule, quiet: () => (socket ? quiet : null), futures: () => map.futures.length };  // for tests and measurements
requestAnimationFrame(draw);
if (window.WebSocket && window.createImageBitmap) {
  connect();
  setInterval(tell, 500);
  setInterval(beat, BEAT);
} else link("this browser is too old for the page: it has no WebSocket", "off");
