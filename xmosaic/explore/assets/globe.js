// The globe: pixels of the field on one canvas, lines and marks on another above it.

class Globe {
  constructor(field, lines, grid, coastlines) {
    Object.assign(this, { field, lines, grid, coastlines, view: new View(), cells: false, point: null, cursor: null });
    this.context = field.getContext('2d', { willReadFrequently: false });
    this.pen = lines.getContext('2d');
    this.placed = null; // what the places of the pixels were computed for
    this.graticule = Globe.graticule();
  }

  static graticule() {
    const out = [];
    const range = (from, to, step) => Array.from({ length: Math.round((to - from) / step) + 1 }, (_, k) => from + k * step);
    for (let longitude = -180; longitude < 180; longitude += 30) {
      out.push(range(-80, 80, 4).map((latitude) => [longitude, latitude]));
    }
    for (let latitude = -60; latitude <= 60; latitude += 30) {
      out.push(range(-180, 180, 4).map((longitude) => [longitude, latitude]));
    }
    return out;
  }

  /** Where the middle of the pictures is and how large they are [CSS pixels]. */
  size() {
    const [width, height] = [this.lines.clientWidth, this.lines.clientHeight];
    return { width, height, scale: this.view.scale(width, height), middle: this.view.middle(width, height) };
  }

  /** Latitude and longitude under a point of the canvas; null beside the globe. */
  placeAt(x, y) {
    const { width, height, scale, middle } = this.size();
    return this.view.place((x - width / 2) / scale, (height / 2 - y) / scale, middle);
  }

  /** For every pixel: the grid point south-west of it, its eastern neighbour, and how far to the next ones. */
  place(ratio) {
    const { width, height, scale, middle } = this.size();
    const { longitude, zoom, flat } = this.view;
    const key = [width, height, ratio, longitude, middle, zoom, flat, this.cells].join();
    if (this.placed === key) return;
    this.placed = key;
    const [columns, rows] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
    if (this.field.width !== columns) this.field.width = columns;
    if (this.field.height !== rows) this.field.height = rows;
    const size = columns * rows;
    if (!this.west || this.west.length !== size) {
      this.west = new Int32Array(size);
      this.east = new Int32Array(size);
      this.across = new Float32Array(size);
      this.up = new Float32Array(size);
      this.image = this.context.createImageData(columns, rows);
    }
    for (let j = 0, k = 0; j < rows; j++) {
      const y = (height / 2 - (j + 0.5) / ratio) / scale;
      for (let i = 0; i < columns; i++, k++) {
        const place = this.view.place(((i + 0.5) / ratio - width / 2) / scale, y, middle);
        this.west[k] = place ? -1 : -2; // −2: beside the globe, −1: outside a region
        if (!place) continue;
        const row = this.grid.row(place[0]);
        const column = row && this.grid.column(place[1]);
        if (!column) continue;
        this.west[k] = row[0] * this.grid.columns + column[0];
        this.east[k] = row[0] * this.grid.columns + column[1];
        this.up[k] = this.cells ? Math.round(row[1]) : row[1];
        this.across[k] = this.cells ? Math.round(column[2]) : column[2];
      }
    }
  }

  /** Paint a field: values on the grid, 256 pixels of colours from low to high. */
  paint(values, colours, low, high, missing, ratio) {
    this.place(ratio);
    const pixels = new Uint32Array(this.image.data.buffer);
    const { west, east, across, up } = this;
    const north = this.grid.rows > 1 ? this.grid.columns : 0;
    const perUnit = 256 / (high - low);
    for (let k = 0; k < pixels.length; k++) {
      const w = west[k];
      if (w < 0) {
        pixels[k] = w === -2 ? 0 : missing;
        continue;
      }
      const [e, a, u] = [east[k], across[k], up[k]];
      // at a whole number the neighbour beyond doesn't count, be it missing or not
      const below = a === 0 ? values[w] : a === 1 ? values[e] : values[w] + a * (values[e] - values[w]);
      const top = u === 0 ? below
        : a === 0 ? values[w + north] : a === 1 ? values[e + north]
          : values[w + north] + a * (values[e + north] - values[w + north]);
      const value = u === 1 ? top : below + u * (top - below);
      const colour = Math.floor((value - low) * perUnit);
      pixels[k] = colour >= 0 ? colours[colour < 256 ? colour : 255] : Number.isNaN(value) ? missing : colours[0];
    }
    this.context.putImageData(this.image, 0, 0);
  }

  /** Draw graticule, coastlines, the limb and the marks. */
  draw() {
    const { width, height, scale, middle } = this.size();
    const ratio = window.devicePixelRatio || 1;
    this.lines.width = Math.round(width * ratio);
    this.lines.height = Math.round(height * ratio);
    const pen = this.pen;
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    pen.setTransform(ratio, 0, 0, ratio, width / 2 * ratio, height / 2 * ratio);
    pen.lineJoin = 'round';
    // lines lie on the colours of the maps, light and dark ones: a dark line with a light seam is seen on both
    this.stroke(this.graticule, scale, middle, 'rgba(255,255,255,.28)', 1.6);
    this.stroke(this.graticule, scale, middle, 'rgba(0,0,0,.30)', 0.7);
    this.stroke(this.coastlines, scale, middle, 'rgba(255,255,255,.55)', 2);
    this.stroke(this.coastlines, scale, middle, 'rgba(0,0,0,.85)', 0.9);
    if (!this.view.flat) {
      pen.beginPath();
      pen.arc(0, 0, scale, 0, 2 * Math.PI);
      pen.lineWidth = 2.5;
      pen.strokeStyle = colour('--soft');
      pen.stroke();
    }
    if (this.point) this.mark(this.point, scale, middle, 7);
    if (this.cursor) this.mark(this.cursor, scale, middle, 3.5);
  }

  stroke(lines, scale, middle, colour, width) {
    const pen = this.pen;
    pen.beginPath();
    for (const line of lines) {
      let [drawn, before] = [false, 0];
      for (const [longitude, latitude] of line) {
        const [x, y, seen] = this.view.project(latitude, longitude, middle);
        const torn = this.view.flat && Math.abs(x - before) > Math.PI; // around the back of the map
        if (!seen) drawn = false;
        else if (drawn && !torn) pen.lineTo(x * scale, -y * scale);
        else pen.moveTo(x * scale, -y * scale);
        drawn = seen;
        before = x;
      }
    }
    pen.lineWidth = width;
    pen.strokeStyle = colour;
    pen.stroke();
  }

  mark([latitude, longitude], scale, middle, radius) {
    const [x, y, seen] = this.view.project(latitude, longitude, middle);
    if (!seen) return;
    for (const [colour, width] of [['#fff', 4], ['#000', 1.8]]) {
      this.pen.beginPath();
      this.pen.arc(x * scale, -y * scale, radius, 0, 2 * Math.PI);
      this.pen.lineWidth = width;
      this.pen.strokeStyle = colour;
      this.pen.stroke();
    }
  }
}

/** Turning, zooming and picking with mouse, fingers and keys; `on` has moved(rough), hover(place), pick(place). */
function handle(globe, on) {
  const canvas = globe.lines;
  const held = new Map();
  let [travelled, apart, between, first] = [0, 0, null, null];
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  /** Two fingers: how far apart they are, and the point between them. */
  const grip = () => {
    const [first, second] = [...held.values()];
    const middle = [(first[0] + second[0]) / 2, (first[1] + second[1]) / 2];
    return [Math.hypot(first[0] - second[0], first[1] - second[1]), middle];
  };
  const turn = (from, to) => {
    const perPixel = DEGREES / globe.size().scale;
    globe.view.turn((from[0] - to[0]) * perPixel, (to[1] - from[1]) * perPixel);
  };
  canvas.addEventListener('pointerdown', (event) => {
    if (event.button !== 0) return;
    held.set(event.pointerId, at(event));
    canvas.setPointerCapture(event.pointerId);
    canvas.classList.add('held');
    travelled = held.size > 1 ? Infinity : 0;
    if (held.size === 1) first = [globe.view.latitude, globe.view.longitude];
    if (held.size === 2) [apart, between] = grip();
  });
  canvas.addEventListener('pointermove', (event) => {
    const now = at(event);
    const before = held.get(event.pointerId);
    if (!before) {
      on.hover(globe.placeAt(...now));
      return;
    }
    held.set(event.pointerId, now);
    if (held.size === 2) {
      // one finger up and down scrolls the page (touch-action), so two turn any way as they zoom
      const [wider, middle] = grip();
      globe.view.zoomBy(wider / (apart || wider || 1));
      turn(between, middle);
      [apart, between] = [wider, middle];
    } else if (held.size === 1) {
      travelled += Math.hypot(now[0] - before[0], now[1] - before[1]);
      turn(before, now);
    }
    on.moved(true);
  });
  const release = (event) => {
    if (!held.delete(event.pointerId) || held.size) return;
    canvas.classList.remove('held');
    const place = globe.placeAt(...at(event));
    if (event.type === 'pointerup' && travelled < 5 && place) on.pick(place);
    // the browser took the finger, to scroll the page: what it turned before that was not meant
    if (event.type === 'pointercancel' && travelled < Infinity) [globe.view.latitude, globe.view.longitude] = first;
    on.moved(false);
  };
  canvas.addEventListener('pointerup', release);
  canvas.addEventListener('pointercancel', release);
  canvas.addEventListener('pointerleave', () => on.hover(null));
  canvas.addEventListener('wheel', (event) => {
    // beside the globe, and where there is nothing further away, the page scrolls
    if (!globe.placeAt(...at(event)) || !globe.view.zoomBy(Math.exp(-event.deltaY * 0.002))) return;
    event.preventDefault();
    on.moved(true);
  }, { passive: false });
  canvas.addEventListener('keydown', (event) => {
    const step = (event.shiftKey ? 1 : 10) / globe.view.zoom;
    const actions = {
      ArrowLeft: () => globe.view.turn(-step, 0),
      ArrowRight: () => globe.view.turn(step, 0),
      ArrowUp: () => globe.view.turn(0, step),
      ArrowDown: () => globe.view.turn(0, -step),
      '+': () => globe.view.zoomBy(1.25),
      '=': () => globe.view.zoomBy(1.25),
      '-': () => globe.view.zoomBy(0.8),
      Home: () => globe.view.home(),
      Enter: () => on.pick([globe.size().middle, globe.view.longitude]),
    };
    if (!actions[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    actions[event.key]();
    on.moved(true);
  });
}
