// The page of `sanawm play`: hands to the server, frames from it. What can be done is in session.py and playback.py.

import { CameraMap } from "/map.js";
import { TimeTree, color } from "/time.js";

const $ = (id) => document.getElementById(id);
const KEYS = { ArrowUp: "i", ArrowDown: "k", ArrowLeft: "j", ArrowRight: "l" };
const AXES = [["right", 0], ["down", 1], ["forward", 2], ["look up", 3], ["turn", 4], ["roll", 5]];
const LOOK = 160;  // pixels of a drag that turn at full speed
const AGAIN = 1000;  // milliseconds until a lost connection is tried again
const FRAME = 1000 / 16;

const nodes = new Map();
let hello = null, socket = null, shown = null, number = 0, comparing = false, driver = null;

// --- the connection ---

function connect() {
  const live = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/live`);
  live.binaryType = "arraybuffer";
  live.onopen = () => { socket = live; nodes.clear(); link("connected", "on"); number += 1; hands(); };
  live.onmessage = ({ data }) => (typeof data === "string" ? hear(JSON.parse(data)) : look(data));
  live.onclose = () => {
    if (socket === live || socket === null) link("connection lost, trying again", "off");
    socket = null;
    setTimeout(connect, AGAIN);
  };
}

function link(text, kind) { $("link").textContent = text; $("link").className = `chip ${kind}`; }
function say(message) { if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message)); }
function ask(what, more = {}) { say({ type: "do", what, ...more }); }

function hear(message) {
  if (message.type === "hello") greet(message);
  else if (message.type === "tree") grow(message);
  else if (message.type === "futures") map.imagine(message.futures);
  else if (message.type === "note") note(message.text, message.kind, message.link);
}

// --- frames: a schedule of pictures and when they are due ---

const view = $("view"), pen = view.getContext("2d");
const offsets = [];  // our clock minus the server's, as messages arrive; the least delayed one is the truest
let schedule = [], lastDrawn = null, decoding = Promise.resolve();
export const figures = { latencies: [], stalls: [0], gaps: [], drawn: 0 };
const waiting = [];  // keys that went down: their number, and when

function unpack(data) {
  const length = new DataView(data).getUint32(0);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  let end = 4 + length;
  const pictures = head.sizes.map((size) => {
    end += size;
    return createImageBitmap(new Blob([new Uint8Array(data, end - size, size)]));
  });
  return [head, pictures];
}

function look(data) {
  const [head, pictures] = unpack(data);
  if (head.type === "compare") { Promise.all(pictures).then((frames) => compare(head, frames)); return; }
  offsets.push(performance.now() - 1000 * head.now);
  if (offsets.length > 40) offsets.shift();
  decoding = decoding.then(() => Promise.all(pictures)).then((frames) => {
    const starts = 1000 * head.starts + Math.min(...offsets);
    const due = (i) => starts + (head.first + i) * FRAME;
    schedule = schedule.filter((entry) => entry.due < (head.more ? Infinity : due(0) - 1));
    frames.forEach((frame, i) => schedule.push({
      due: due(i), frame, node: head.node, index: head.first + i, answers: head.answers,
    }));
  });
}

function draw() {
  const now = performance.now();
  let entry = null;
  while (schedule.length && schedule[0].due <= now) entry = schedule.shift();
  if (entry) {
    if (view.width !== entry.frame.width) { view.width = entry.frame.width; view.height = entry.frame.height; }
    pen.drawImage(entry.frame, 0, 0);
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
  hands();
}

function up(source) {
  if (!pressed.delete(source)) return;
  number += 1;
  if ([...held()].sort().join("") !== sent) hands();
}

const typing = (event) => event.target.matches?.("input, textarea, select") && event.target.type !== "range" && event.target.type !== "checkbox";

window.addEventListener("keydown", (event) => {
  if (typing(event) || event.ctrlKey || event.metaKey || event.altKey || $("comparison").open) return;
  if (event.key === "Backspace") { event.preventDefault(); if (!event.repeat) back(); return; }
  const key = KEYS[event.key] ?? event.key.toLowerCase();
  if (!"wsadikjl".includes(key) || key.length !== 1) return;
  event.preventDefault();
  if (!event.repeat) down(event.code, key, performance.now());
});
window.addEventListener("keyup", (event) => up(event.code));
window.addEventListener("blur", () => { for (const source of [...pressed.keys()]) up(source); release(); });

for (const button of $("pad").children) {
  button.addEventListener("pointerdown", (event) => { button.setPointerCapture(event.pointerId); down(event.pointerId, button.dataset.key, performance.now()); });
  for (const end of ["pointerup", "pointercancel"]) button.addEventListener(end, (event) => up(event.pointerId));
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
view.addEventListener("pointerdown", (event) => { view.focus(); grip = [event.clientX, event.clientY]; view.setPointerCapture(event.pointerId); });
view.addEventListener("pointermove", (event) => {
  if (!grip || performance.now() - lastPush < 60) return;
  lastPush = performance.now();
  const quarter = (v) => Math.round(4 * Math.min(1, Math.max(-1, v))) / 4;  // few steps: every change is imagined anew
  const wanted = [quarter((event.clientX - grip[0]) / LOOK), quarter((grip[1] - event.clientY) / LOOK)];
  if (wanted[0] !== look6[0] || wanted[1] !== look6[1]) { look6 = wanted; map.imagine([]); push(); }
});
for (const end of ["pointerup", "pointercancel"]) view.addEventListener(end, release);

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
  $("memory").textContent = `${count} nodes · ${bytes(here)} of ${bytes(limit)}${away ? ` · ${away} on disk, ${bytes(disk)}` : ""}`;
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
$("compare").onclick = () => { comparing = !comparing; $("compare").classList.toggle("on", comparing); $("compare").textContent = comparing ? "Click a branch" : "Compare with…"; };
$("name").onchange = () => ask("rename", { node: shown, name: $("name").value });
$("name").onkeydown = (event) => { if (event.key === "Enter") $("name").blur(); };

function compare(head, frames) {
  const both = $("both"), g = both.getContext("2d"), begin = performance.now();
  both.width = frames[0].width; both.height = frames[0].height;
  $("left").textContent = head.left; $("right").textContent = head.right;
  $("comparison").showModal();
  (function step() {
    if (!$("comparison").open) return;
    const i = Math.floor((performance.now() - begin) / FRAME) % frames.length;
    g.drawImage(frames[i], 0, 0);
    both.dataset.frame = i;
    $("likeness").textContent = `frame ${i + 1} of ${frames.length} after they part · ${head.psnr[i]} dB alike`;
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
  nodes.clear(); map.imagine([]); schedule = [];
  $("worlds").replaceChildren(...message.worlds.map((name) => new Option(name, name, false, name === message.world)));
  $("world").textContent = message.world;
  $("prompt").disabled = !message.prompts;
  if (!message.prompts) $("prompt").placeholder = "this world reads no text";
  if (!$("fov").value) $("fov").placeholder = Math.round(message.fov);
  $("scenes").replaceChildren(...message.scenes.map((name, i) => {
    const button = document.createElement("button"), image = document.createElement("img");
    button.type = "button"; button.title = name; button.dataset.scene = i;
    image.loading = "lazy"; image.alt = name; image.src = `/scenes/${i}`;
    button.append(image);
    button.onclick = () => ask("begin", { scene: i, ...lens() });
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
  $("worlds").value = hello.world;
  if (confirm(`Go to the ${name} world? This session ends for everybody; save it first to keep it.`)) ask("world", { name });
};

function lens() { return { prompt: $("prompt").value, fov: $("fov").value ? Number($("fov").value) : null }; }

async function upload(file) {
  if (!file) return;
  if (!["image/png", "image/jpeg", "image/webp"].includes(file.type)) { note("This file is not a PNG, JPEG or WebP image: drop one of these.", "error"); return; }
  if (file.size > hello.upload) { note(`The image takes ${(file.size / 2 ** 20).toFixed(1)} MB, ${hello.upload / 2 ** 20} are accepted: make it smaller.`, "error"); return; }
  const head = new TextEncoder().encode(JSON.stringify({ name: file.name.slice(0, 80), ...lens() }));
  const message = new Uint8Array(4 + head.length + file.size);
  new DataView(message.buffer).setUint32(0, head.length);
  message.set(head, 4); message.set(new Uint8Array(await file.arrayBuffer()), 4 + head.length);
  if (socket?.readyState === WebSocket.OPEN) socket.send(message);
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
    if (href) box.append(Object.assign(document.createElement("a"), { href, textContent: "Download", download: "" }));
    return box;
  };
  const toast = fill(Object.assign(document.createElement("div"), { className: kind }));
  $("toasts").append(toast);
  setTimeout(() => toast.remove(), kind === "error" ? 9000 : 5000);
  if (kind === "note") $("notes").prepend(fill(document.createElement("div")));
}

window.sanawm = { figures, nodes, schedule: () => schedule, futures: () => map.futures.length };  // for tests and measurements
setInterval(tell, 500);
connect();
requestAnimationFrame(draw);
