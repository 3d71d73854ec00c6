// Colours of values, and numbers as people write them.

/** A map of 256 colours as 32-bit pixels, from a string of hexadecimal digits. */
function pixelsOf(digits) {
  const out = new Uint32Array(digits.length / 6);
  for (let k = 0; k < out.length; k++) {
    const colour = parseInt(digits.slice(6 * k, 6 * k + 6), 16);
    // canvas pixels lie in memory as red, green, blue, alpha; all machines that run browsers put the first byte lowest
    out[k] = (255 << 24) | ((colour & 255) << 16) | (colour & 0xff00) | (colour >> 16);
  }
  return out;
}

/** A CSS colour as such a pixel. */
function pixelOf(css) {
  const context = document.createElement('canvas').getContext('2d');
  context.fillStyle = css;
  context.fillRect(0, 0, 1, 1);
  const [red, green, blue, alpha] = context.getImageData(0, 0, 1, 1).data;
  return ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

/** Even, round numbers within an interval, about so many. */
function ticks(low, high, count) {
  const raw = (high - low) / Math.max(count, 1);
  if (!(raw > 0) || !Number.isFinite(raw)) return [low];
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((x) => x * power).find((x) => x >= raw * 0.999);
  const out = [];
  for (let k = Math.ceil(low / step - 1e-9); k <= Math.floor(high / step + 1e-9); k++) out.push(k * step);
  return out;
}

/** A tick's number: as many digits as ticks of this distance need. */
function tickText(value, step) {
  const size = Math.max(Math.abs(value), Math.abs(step));
  if (size && (size >= 1e6 || size < 1e-3)) return minus(Number(value.toPrecision(3)).toExponential());
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return minus(String(Number(value.toFixed(Math.min(digits + 1, 8)))));
}

/** A value with the digits that its error leaves it. */
function valueText(value, error) {
  if (!Number.isFinite(value)) return 'no value';
  const size = Math.abs(value);
  const exponent = size > 0 ? Math.floor(Math.log10(size)) : 0;
  const last = error > 0 ? Math.floor(Math.log10(error)) : exponent - 3;
  const digits = Math.max(1, Math.min(8, exponent - last + 1));
  const short = Number(value.toPrecision(digits));
  if (short !== 0 && (Math.abs(short) >= 1e7 || Math.abs(short) < 1e-3)) return minus(short.toExponential());
  return minus(short.toFixed(Math.max(0, Math.min(8, -last))));
}

const minus = (text) => text.replace(/-/g, '−');
