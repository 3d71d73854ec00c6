// Line charts as SVG: sharp at any size, coloured by the page's style.

const SVG = 'http://www.w3.org/2000/svg';

function drawn(name, attributes, parent, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent?.append(element);
  return element;
}

/** An axis: from its limits to pixels, and where its ticks are. */
class Axis {
  constructor({ low, high, log = false, marks, label, text }, from, to) {
    Object.assign(this, { log, label, from, to });
    if (!(high > low)) [low, high] = log ? [low / 2, low * 2] : [low - 1, high + 1];
    [this.low, this.high] = [low, high];
    this.marks = marks ?? (log ? Axis.decades(low, high) : ticks(low, high, Math.abs(to - from) / 32));
    const step = this.marks.length > 1 ? this.marks[1] - this.marks[0] : this.marks[0];
    this.text = text ?? (log ? powerText : (value) => tickText(value, step));
  }

  static decades(low, high) {
    const [first, last] = [Math.ceil(Math.log10(low) - 1e-9), Math.floor(Math.log10(high) + 1e-9)];
    const every = Math.max(1, Math.ceil((last - first) / 5));
    const out = [];
    for (let k = first; k <= last; k += every) out.push(10 ** k);
    return out;
  }

  at(value) {
    const share = this.log
      ? Math.log(value / this.low) / Math.log(this.high / this.low)
      : (value - this.low) / (this.high - this.low);
    return this.from + share * (this.to - this.from);
  }
}

/** 1, 10, 100 as they are, other powers of ten as such. */
function powerText(value) {
  const power = Math.log10(value);
  if (Math.abs(power - Math.round(power)) > 1e-6 || Math.abs(power) < 3) return String(Number(value.toPrecision(3)));
  const raised = [...String(Math.round(power))].map((c) => '⁰¹²³⁴⁵⁶⁷⁸⁹'['0123456789'.indexOf(c)] ?? '⁻').join('');
  return `10${raised}`;
}

/**
 * Draw lines into an element, in place of what it held. `lines`: [{ points: [[x, y], …], kind }], `kind` a class of
 * page.css; `now`: x of a vertical mark; `say`: what a reader who can't see it is told.
 */
function chart(host, { x, y, lines, now, say }) {
  const [width, height] = [Math.max(host.clientWidth, 200), Math.max(host.clientHeight, 120)];
  const box = { left: 56, right: width - 8, top: 18, bottom: height - 34 };
  const across = new Axis(x, box.left, box.right);
  const up = new Axis(y, box.bottom, box.top);
  const svg = drawn('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': say });
  for (const mark of up.marks) {
    const at = up.at(mark).toFixed(1);
    drawn('line', { class: 'grid', x1: box.left, x2: box.right, y1: at, y2: at }, svg);
    drawn('text', { x: box.left - 6, y: Number(at) + 4, 'text-anchor': 'end' }, svg, up.text(mark));
  }
  let free = -Infinity; // where the last tick's letters end
  for (const mark of across.marks) {
    const at = across.at(mark);
    drawn('line', { class: 'grid', x1: at, x2: at, y1: box.bottom, y2: box.bottom + 4 }, svg);
    const text = across.text(mark);
    if (at - text.length * 3.5 < free) continue;
    free = at + text.length * 3.5 + 4;
    drawn('text', { x: at, y: box.bottom + 16, 'text-anchor': 'middle' }, svg, text);
  }
  drawn('text', { x: (box.left + box.right) / 2, y: height - 3, 'text-anchor': 'middle' }, svg, across.label);
  drawn('text', { x: 0, y: 10 }, svg, up.label);
  if (now !== undefined) {
    const at = across.at(now);
    drawn('line', { class: 'now', x1: at, x2: at, y1: box.top, y2: box.bottom }, svg);
  }
  for (const { points, kind } of lines) drawn('path', { class: kind, d: pathOf(points, across, up) }, svg);
  host.replaceChildren(svg);
}

/** A path through points; broken where there is none. A lone point is a dot. */
function pathOf(points, across, up) {
  let [path, drawing] = ['', false];
  for (const [x, y] of points) {
    const there = Number.isFinite(x) && Number.isFinite(y) && (!up.log || y > 0);
    if (there) path += `${drawing ? 'L' : 'M'}${across.at(x).toFixed(1)} ${up.at(y).toFixed(1)}${drawing ? '' : 'h.01'}`;
    drawing = there;
  }
  return path;
}

/** What the kinds of lines mean, beneath a chart. */
function legend(host, entries) {
  const list = document.createElement('div');
  list.className = 'legend';
  for (const [kind, text] of entries) {
    const item = document.createElement('span');
    const sample = drawn('svg', { viewBox: '0 0 24 8', 'aria-hidden': 'true' }, item);
    drawn('path', { class: kind, d: 'M1 4H23' }, sample);
    item.append(text);
    list.append(item);
  }
  host.querySelector('.legend')?.remove();
  host.append(list);
}
