// Camera paths in three dimensions, on a plain canvas: lines, frusta, thumbnails at the ends of predicted futures.

const TURN = 0.008, NEAR = 0.05;

export class CameraMap {
  constructor(canvas, onPick) {
    this.canvas = canvas;
    this.onPick = onPick;
    this.yaw = -0.6; this.pitch = 0.75; this.zoom = 1;
    this.lines = []; this.cameras = []; this.futures = [];
    this.center = [0, 0, 0]; this.radius = 1.5;
    this.dirty = true;
    let last = null, moved = 0;
    canvas.addEventListener("pointerdown", (e) => { last = [e.clientX, e.clientY]; moved = 0; canvas.setPointerCapture(e.pointerId); });
    canvas.addEventListener("pointermove", (e) => {
      if (!last) return;
      const dx = e.clientX - last[0], dy = e.clientY - last[1];
      moved += Math.abs(dx) + Math.abs(dy);
      this.yaw -= dx * TURN;
      this.pitch = Math.min(1.55, Math.max(-0.2, this.pitch + dy * TURN));
      last = [e.clientX, e.clientY]; this.dirty = true;
    });
    canvas.addEventListener("pointerup", (e) => { if (last && moved < 5) this.pick(e.offsetX, e.offsetY); last = null; });
    for (const end of ["pointercancel", "lostpointercapture"]) canvas.addEventListener(end, () => { last = null; });
    canvas.addEventListener("wheel", (e) => {
      e.preventDefault();
      this.zoom = Math.min(8, Math.max(0.2, this.zoom * Math.exp(-e.deltaY * 0.001)));
      this.dirty = true;
    }, { passive: false });
    new ResizeObserver(() => { this.dirty = true; }).observe(canvas);
  }

  // lines: {points, color, width}; cameras: {id, pose, color, big}; aspect: width over height of a frustum
  show(lines, cameras, aspect, tangent) {
    this.lines = lines; this.cameras = cameras; this.aspect = aspect; this.tangent = tangent;
    const points = lines.flatMap((line) => line.points).concat(cameras.map((c) => place(c.pose)));
    if (points.length) {
      const low = [0, 1, 2].map((k) => Math.min(...points.map((p) => p[k])));
      const high = [0, 1, 2].map((k) => Math.max(...points.map((p) => p[k])));
      this.center = low.map((v, k) => (v + high[k]) / 2);
      this.radius = Math.max(0.8, Math.hypot(...low.map((v, k) => high[k] - v)) / 2);
    }
    this.dirty = true;
  }

  imagine(futures) {
    this.futures = futures.map((f) => {
      const image = new Image();
      image.onload = () => { this.dirty = true; };
      image.src = f.end;
      return { ...f, image };
    });
    this.dirty = true;
  }

  // World (x right, y down, z forward) to pixels; null behind the eye.
  project([x, y, z]) {
    const [a, b, c] = [x - this.center[0], y - this.center[1], z - this.center[2]];
    const cy = Math.cos(this.yaw), sy = Math.sin(this.yaw), cp = Math.cos(this.pitch), sp = Math.sin(this.pitch);
    const right = cy * a - sy * c, ahead = sy * a + cy * c;
    const down = cp * b - sp * ahead;
    const depth = sp * b + cp * ahead + 2.2 * this.radius / this.zoom;
    if (depth < NEAR) return null;
    const focal = 1.05 * Math.min(this.width, this.height * 1.4);
    return [this.width / 2 + focal * right / depth, this.height / 2 + focal * down / depth, depth];
  }

  draw() {
    if (!this.dirty) return;
    this.dirty = false;
    const scale = window.devicePixelRatio || 1;
    this.width = this.canvas.clientWidth; this.height = this.canvas.clientHeight;
    if (this.canvas.width !== this.width * scale || this.canvas.height !== this.height * scale) {
      this.canvas.width = this.width * scale; this.canvas.height = this.height * scale;
    }
    const g = this.canvas.getContext("2d");
    g.setTransform(scale, 0, 0, scale, 0, 0);
    g.clearRect(0, 0, this.width, this.height);
    g.lineJoin = g.lineCap = "round";
    this.grid(g);
    for (const line of this.lines) this.line(g, line.points, line.color, line.width);
    for (const camera of this.cameras) if (!camera.big) this.frustum(g, camera);
    for (const future of this.futures) this.line(g, future.path, "#ffffffb0", 1);
    for (const future of this.futures) this.thumbnail(g, future);
    for (const camera of this.cameras) if (camera.big) this.frustum(g, camera);
  }

  thumbnail(g, { pose, image }) {
    const at = this.project(place(pose));
    if (!at || !image.complete || !image.naturalWidth) return;
    const w = 33, h = w / this.aspect;
    g.drawImage(image, at[0] - w / 2, at[1] - h / 2, w, h);
    g.strokeStyle = "#ffffffc0"; g.lineWidth = 1;
    g.strokeRect(at[0] - w / 2, at[1] - h / 2, w, h);
  }

  grid(g) {
    const step = this.radius > 6 ? 2 : 1, reach = Math.ceil(this.radius * 1.6 / step) * step;
    const [x0, , z0] = this.center.map((v) => Math.round(v / step) * step);
    for (let k = -reach; k <= reach; k += step) {
      this.line(g, [[x0 + k, 0.6, z0 - reach], [x0 + k, 0.6, z0 + reach]], "#222a33", 1);
      this.line(g, [[x0 - reach, 0.6, z0 + k], [x0 + reach, 0.6, z0 + k]], "#222a33", 1);
    }
  }

  line(g, points, color, width) {
    g.strokeStyle = color; g.lineWidth = width;
    g.beginPath();
    let open = false;
    for (const point of points) {
      const at = this.project(point);
      if (at) { if (open) g.lineTo(at[0], at[1]); else g.moveTo(at[0], at[1]); }
      open = Boolean(at);
    }
    g.stroke();
  }

  frustum(g, { pose, color, big }) {
    const length = (big ? 0.14 : 0.075) * Math.max(1, this.radius / 1.5);
    const w = length * this.tangent, h = w / this.aspect;
    const corners = [[-w, -h], [w, -h], [w, h], [-w, h]].map(([x, y]) => move(pose, [x, y, length]));
    const tip = place(pose), loop = [...corners, corners[0]];
    const flat = loop.map((p) => this.project(p));
    if (flat.every(Boolean)) {
      g.fillStyle = color + (big ? "66" : "2e");
      g.beginPath(); flat.forEach(([x, y], i) => (i ? g.lineTo(x, y) : g.moveTo(x, y))); g.fill();
    }
    const paint = big ? "#ffffff" : color;
    this.line(g, loop, paint, big ? 2 : 1.2);
    for (const corner of corners) this.line(g, [tip, corner], paint, big ? 1.6 : 1);
  }

  pick(x, y) {
    let best = null, nearest = 16;
    for (const camera of this.cameras) {
      const at = this.project(place(camera.pose));
      const away = at ? Math.hypot(at[0] - x, at[1] - y) : Infinity;
      if (away < nearest) { nearest = away; best = camera; }
    }
    if (best) this.onPick(best.id);
  }
}

function place(pose) { return [pose[0][3], pose[1][3], pose[2][3]]; }
function move(pose, p) { return [0, 1, 2].map((r) => pose[r][0] * p[0] + pose[r][1] * p[1] + pose[r][2] * p[2] + pose[r][3]); }
