// The tree of time: a row for each branch, time from left to right, thumbnails that one clicks to go there.

export const COLORS = ["#7cc4ff", "#ffb454", "#7ddba3", "#d79bff", "#ff8f8f", "#6fe0e0", "#e8d86a", "#ff9bd0", "#a8b8ff", "#b6e07c"];
export const color = (branch) => COLORS[branch % COLORS.length];
const STEP = 78, ROW = 48, LEFT = 12, TOP = 5, WIDTH = 60, HEIGHT = 40;

export class TimeTree {
  constructor(box, edges, onPick) {
    this.box = box; this.edges = edges; this.onPick = onPick;
    this.buttons = new Map();
    this.current = -1;
  }

  // nodes: Map of id to node. Rows are the branches in the order of their numbers, each in the first free row below its
  // origin, so that scenes lie below one another and a branch never covers another.
  show(nodes, current) {
    const rows = rowsOf(nodes);
    for (const [id, button] of this.buttons) if (!nodes.has(id)) { button.remove(); this.buttons.delete(id); }
    let width = 0, height = 0;
    const lines = [];
    for (const node of nodes.values()) {
      const x = LEFT + STEP * node.chunk, y = TOP + ROW * rows.get(node.branch);
      width = Math.max(width, x + WIDTH + LEFT); height = Math.max(height, y + HEIGHT + TOP);
      const button = this.buttons.get(node.id) ?? this.make(node);
      button.style.left = `${x}px`; button.style.top = `${y}px`;
      button.style.borderColor = color(node.branch);
      button.classList.toggle("current", node.id === current);
      button.classList.toggle("pinned", node.pinned);
      button.lastChild.textContent = node.name || (node.parent === null ? node.scene : "");
      button.lastChild.hidden = !button.lastChild.textContent;
      button.title = `${node.name ? node.name + " · " : ""}${node.move || node.scene} · node ${node.id}`;
      const parent = nodes.get(node.parent);
      if (parent) {
        const px = LEFT + STEP * parent.chunk + WIDTH, py = TOP + ROW * rows.get(parent.branch) + HEIGHT / 2;
        const cy = y + HEIGHT / 2;
        const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
        line.setAttribute("d", `M${px} ${py} C${px + 9} ${py} ${px + 9} ${cy} ${x} ${cy}`);
        line.setAttribute("stroke", color(node.branch));
        lines.push(line);
      }
    }
    this.edges.setAttribute("width", width); this.edges.setAttribute("height", height);
    this.edges.replaceChildren(...lines);
    if (current !== this.current) { this.current = current; this.buttons.get(current)?.scrollIntoView({ block: "nearest", inline: "nearest" }); }
  }

  make(node) {
    const button = document.createElement("button");
    button.type = "button"; button.className = "node"; button.dataset.node = node.id;
    const image = document.createElement("img");
    image.src = node.thumbnail; image.alt = ""; image.draggable = false;
    button.append(image, document.createElement("span"));
    button.addEventListener("click", (event) => this.onPick(node.id, event));
    this.box.append(button); this.buttons.set(node.id, button);
    return button;
  }
}

function rowsOf(nodes) {
  const spans = new Map();  // branch -> its columns, with the one it parts from
  for (const node of nodes.values()) {
    const span = spans.get(node.branch) ?? { from: node.chunk, to: node.chunk, parent: null };
    if (node.chunk <= span.from) { span.from = node.chunk; span.parent = nodes.get(node.parent)?.branch ?? null; }
    span.to = Math.max(span.to, node.chunk);
    spans.set(node.branch, span);
  }
  const rows = new Map(), taken = [];
  for (const [branch, span] of [...spans].sort((a, b) => a[0] - b[0])) {
    let row = span.parent === null ? taken.length : (rows.get(span.parent) ?? -1) + 1;
    while ((taken[row] ?? []).some((other) => span.from - 1 <= other.to && other.from - 1 <= span.to)) row += 1;
    (taken[row] ??= []).push(span);
    rows.set(branch, row);
  }
  for (let i = 0; i < taken.length; i++) taken[i] ??= [];
  return rows;
}
