// Where things are: from pixels to places and back, and from places to the grid.

const DEGREES = 180 / Math.PI;

/** Longitude within −180 … 180. */
const wrapped = (longitude) => longitude - 360 * Math.floor((longitude + 180) / 360);

/** How the sphere is seen: the middle, how near, as globe (orthographic) or flat (plate carrée). */
class View {
  constructor() {
    this.home();
    this.flat = false;
  }

  home() {
    this.longitude = 0;
    this.latitude = 35;
    this.zoom = 1;
  }

  /** Pixels per radius of the globe, or per radian of the flat map. */
  scale(width, height) {
    return (this.flat ? width / (2 * Math.PI) : Math.min(width, height) * 0.475) * this.zoom;
  }

  turn(east, north) {
    this.longitude = wrapped(this.longitude + east);
    this.latitude = Math.max(-90, Math.min(90, this.latitude + north));
  }

  zoomBy(factor) {
    const before = this.zoom;
    this.zoom = Math.max(1, Math.min(12, this.zoom * factor));
    return this.zoom !== before;
  }

  /** The middle that the flat map really has: no paper beyond the poles unless there must be. */
  middle(width, height) {
    if (!this.flat) return this.latitude;
    const half = height / 2 / this.scale(width, height) * DEGREES;
    return half >= 90 ? 0 : Math.max(half - 90, Math.min(90 - half, this.latitude));
  }

  /** Latitude and longitude [degrees] at x to the right and y up from the middle [scale]; null beside the globe. */
  place(x, y, middle) {
    if (this.flat) {
      const latitude = middle + y * DEGREES;
      if (Math.abs(latitude) > 90 || Math.abs(x) > Math.PI) return null;
      return [latitude, wrapped(this.longitude + x * DEGREES)];
    }
    const outer = x * x + y * y;
    if (outer > 1) return null;
    const depth = Math.sqrt(1 - outer);
    const sine = Math.sin(middle / DEGREES);
    const cosine = Math.cos(middle / DEGREES);
    const latitude = Math.asin(Math.max(-1, Math.min(1, depth * sine + y * cosine))) * DEGREES;
    return [latitude, wrapped(this.longitude + Math.atan2(x, depth * cosine - y * sine) * DEGREES)];
  }

  /** x, y [scale] of a place, and whether it's on the side that is seen. */
  project(latitude, longitude, middle) {
    const east = wrapped(longitude - this.longitude) / DEGREES;
    if (this.flat) return [east, (latitude - middle) / DEGREES, true];
    const [phi, phi0] = [latitude / DEGREES, middle / DEGREES];
    const seen = Math.sin(phi0) * Math.sin(phi) + Math.cos(phi0) * Math.cos(phi) * Math.cos(east);
    const y = Math.cos(phi0) * Math.sin(phi) - Math.sin(phi0) * Math.cos(phi) * Math.cos(east);
    return [Math.cos(phi) * Math.sin(east), y, seen > 0];
  }
}

/** Latitudes from south to north, longitudes eastward within 0 … 360; all around, or a region. */
class Grid {
  constructor(latitude, longitude) {
    this.latitude = latitude;
    this.longitude = longitude;
    this.rows = latitude.length;
    this.columns = longitude.length;
    this.size = this.rows * this.columns;
    const gaps = longitude.map((x, k) => (k + 1 < longitude.length ? longitude[k + 1] : longitude[0] + 360) - x);
    // the widest gap is where a region's edges are
    const widest = gaps.indexOf(Math.max(...gaps));
    const usual = [...gaps].sort((a, b) => a - b)[Math.floor((gaps.length - 1) / 2)];
    this.around = gaps[widest] < 1.6 * usual + 1e-6;
    this.edge = this.around ? -1 : widest;
    this.halfRow = this.rows > 1 ? Math.abs(latitude[1] - latitude[0]) / 2 : 0.5;
    this.halfColumn = usual / 2;
    this.columnOf = Grid.table(longitude, 0, 360, 7200);
    this.rowOf = Grid.table(latitude, -90, 90, 3600);
  }

  /** For each of many even steps the last of some ascending numbers that isn't above it, −1 if all are. */
  static table(numbers, from, to, steps) {
    const out = new Int32Array(steps + 1);
    for (let k = 0, at = -1; k <= steps; k++) {
      while (at + 1 < numbers.length && numbers[at + 1] <= from + (to - from) * k / steps) at++;
      out[k] = at;
    }
    return out;
  }

  /** Row south of a latitude and how far it is to the next one, 0 … 1; null outside. */
  row(latitude) {
    let south = this.rowOf[Math.max(0, Math.min(3600, Math.floor((latitude + 90) * 20)))];
    while (south + 1 < this.rows && this.latitude[south + 1] <= latitude) south++;
    const outside = Math.max(this.latitude[0] - latitude, latitude - this.latitude[this.rows - 1]);
    if (outside > 0) {
      // rows half a step from the pole, or a little more, reach it
      if (outside > 1.05 * this.halfRow) return null;
      return south < 0 ? [0, 0] : this.rows > 1 ? [this.rows - 2, 1] : [0, 0];
    }
    if (south >= this.rows - 1) return this.rows > 1 ? [this.rows - 2, 1] : [0, 0];
    return [south, (latitude - this.latitude[south]) / (this.latitude[south + 1] - this.latitude[south])];
  }

  /** Columns west and east of a longitude and how far it is to the eastern, 0 … 1; null outside. */
  column(longitude) {
    const x = longitude < 0 ? longitude + 360 : longitude;
    let west = this.columnOf[Math.max(0, Math.min(7200, Math.floor(x * 20)))];
    while (west + 1 < this.columns && this.longitude[west + 1] <= x) west++;
    if (west < 0) west = this.columns - 1;
    const east = (west + 1) % this.columns;
    const beyond = (x - this.longitude[west] + 360) % 360;
    const gap = (this.longitude[east] - this.longitude[west] + 360) % 360 || 360;
    if (west === this.edge) {
      if (beyond <= this.halfColumn) return [west, west, 0];
      return gap - beyond <= this.halfColumn ? [east, east, 0] : null;
    }
    return [west, east, beyond / gap];
  }

  /** The grid point nearest to a place, as its number; −1 outside. */
  nearest(latitude, longitude) {
    const row = this.row(latitude);
    const column = this.column(longitude);
    if (!row || !column) return -1;
    return (row[0] + Math.round(row[1])) * this.columns + (column[2] < 0.5 ? column[0] : column[1]);
  }
}
