// From letters to fields: the inverse of xmosaic/explore/pack.py.

const LETTERS = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%,()*+-;.=/?@^_:{|}~';
const MISSING = -128;
const MISSING_FINE = -32768;

/** Bytes of base-85 text, five letters for four of them. */
function bytesOf(text) {
  const digit = new Uint8Array(128);
  for (let k = 0; k < LETTERS.length; k++) digit[LETTERS.charCodeAt(k)] = k;
  const short = (5 - text.length % 5) % 5;
  const padded = text + '~'.repeat(short);
  const bytes = new Uint8Array(padded.length / 5 * 4);
  for (let from = 0, to = 0; from < padded.length; to += 4) {
    let number = 0; // up to 85⁵, more than 32 bits: no shifts before it is whole
    for (const end = from + 5; from < end; from++) number = number * 85 + digit[padded.charCodeAt(from)];
    bytes[to] = number >>> 24;
    bytes[to + 1] = number >>> 16;
    bytes[to + 2] = number >>> 8;
    bytes[to + 3] = number;
  }
  return bytes.subarray(0, bytes.length - short);
}

/** Inflate with what the browser brings. */
async function inflate(bytes) {
  if (typeof DecompressionStream === 'undefined') {
    throw new Error('This browser can’t unpack the page (no DecompressionStream). Any browser from 2023 on can.');
  }
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/**
 * Undo the differences of one plane: each number was told as its difference from a guess, the median of west, north,
 * and west + north − north-west. `out` is an Int8Array or Int16Array, which wraps whole turns by itself.
 */
function undoPlane(difference, rows, columns, out, to) {
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const at = to + row * columns + column;
      const west = column ? out[at - 1] : 0;
      const north = row ? out[at - columns] : 0;
      const slope = west + north - (row && column ? out[at - columns - 1] : 0);
      const low = west < north ? west : north;
      const high = west < north ? north : west;
      const guess = slope < low ? low : slope > high ? high : slope;
      out[at] = guess + difference(row * columns + column);
    }
  }
}

/** Reads planes off a run of bytes, one after the other. */
class Reader {
  constructor(bytes) {
    this.bytes = bytes;
    this.at = 0;
  }

  /** `count` planes of one byte a number. */
  bytePlanes(count, rows, columns) {
    const out = new Int8Array(count * rows * columns);
    for (let plane = 0; plane < count; plane++) {
      const from = this.at;
      undoPlane((k) => this.bytes[from + k], rows, columns, out, plane * rows * columns);
      this.at += rows * columns;
    }
    return out;
  }

  /** One plane of two bytes a number: all high bytes, then all low ones. */
  finePlane(rows, columns) {
    const size = rows * columns;
    const out = new Int16Array(size);
    const from = this.at;
    undoPlane((k) => (this.bytes[from + k] << 8) | this.bytes[from + size + k], rows, columns, out, 0);
    this.at += 2 * size;
    return out;
  }
}
