// State, controls, drawing. The state is in the address after #, so that a view can be bookmarked:
// #variable=temperature&level=500&lead=3&member=2&show=spread&start=1&above=280&point=52,13&view=45,10,1.5&map=flat
// lead and start count from 1, member is a label. window.xmosaic does the same from a script.

const about = JSON.parse(document.getElementById('about').textContent);
const $ = (id) => document.getElementById(id);
const grid = new Grid(about.latitude, about.longitude);
const globe = new Globe($('field'), $('lines'), grid, about.coastlines);
const palettes = Object.fromEntries(Object.entries(about.colours).map(([name, digits]) => [name, pixelsOf(digits)]));
const blocks = about.fields.map((field) => field.blocks.map((own) => new Block(own, about.members.length, grid)));
const several = about.members.length > 1;
const known = about.fields.some((field) => field.blocks.some((own) => own.truth.some(Boolean)));
const state = { field: 0, level: 0, start: 0, lead: 0, member: 0, show: 'member', above: null, theme: null };
const kept = []; // blocks that are unpacked, the latest last
const MOST_KEPT = 8;
let [playing, frame, rough, refine, shown] = [null, 0, false, 0, null];

const field = () => about.fields[state.field];
const limits = () => field().limits[state.level][SHOWN[state.show].limits];
const block = () => blocks[state.field].find((b) => b.about.start === state.start && b.about.level === state.level);

/** A variable with its level, as it stands in titles. */
function titleAtLevel() {
  const levels = field().levels;
  return levels ? `${field().title} at ${levels[state.level]} hPa` : field().title;
}

const degrees = (value, positive, negative) => `${Number(Math.abs(value).toFixed(2))}°${value < 0 ? negative : positive}`;
const placeText = ([latitude, longitude]) => `${degrees(latitude, 'N', 'S')} ${degrees(wrapped(longitude), 'E', 'W')}`;
const placeOf = (k) => [grid.latitude[Math.floor(k / grid.columns)], grid.longitude[k % grid.columns]];

/** The value that is exceeded [units]; the middle of the colours until it is chosen. */
function above() {
  const { low, high } = field().limits[state.level].value;
  return state.above ?? low + 0.75 * (high - low);
}

// ------------------------------------------------------------------------------------------------------ controls

function options(select, texts, at) {
  select.replaceChildren(...texts.map((text, k) => new Option(text, k, false, k === at)));
}

/** What can be shown of this forecast. */
const shows = Object.keys(SHOWN).filter((key) => (several || !SHOWN[key].several) && (known || !SHOWN[key].truth));

function showControls() {
  options($('variable'), about.fields.map((f) => f.title), state.field);
  options($('level'), (field().levels ?? []).map((x) => `${x} hPa`), state.level);
  options($('show'), shows.map((key) => (key === 'member' && !several ? 'Forecast' : SHOWN[key].title)), shows.indexOf(state.show));
  options($('start'), about.starts, state.start);
  $('level-label').hidden = !field().levels;
  $('start-label').hidden = about.starts.length < 2;
  $('member-label').hidden = !several || !['member', 'error'].includes(state.show);
  $('above-label').hidden = state.show !== 'probability';
  $('member').max = about.members.length - 1;
  $('member').value = state.member;
  $('member-text').textContent = `${about.members[state.member]} of ${about.members.length}`;
  const range = field().limits[state.level].value;
  $('above').value = Math.round(100 * (above() - range.low) / (range.high - range.low));
  $('above-text').textContent = `${valueText(above(), (range.high - range.low) / 100)} ${field().units}`;
  $('lead').max = about.leads.length - 1;
  $('lead').value = state.lead;
  $('lead').setAttribute('aria-valuetext', leadText());
  $('lead-text').textContent = leadText();
  $('flat').setAttribute('aria-pressed', globe.view.flat);
  $('cells').setAttribute('aria-pressed', globe.cells);
}

function leadText() {
  const valid = about.valid[state.start][state.lead];
  return `+${about.leads[state.lead]}${valid ? ` · ${valid}` : ''}`;
}

function listen() {
  const choose = (id, change) => $(id).addEventListener('input', () => set(change($(id))));
  choose('variable', (own) => ({ variable: about.fields[Number(own.value)].name }));
  choose('level', (own) => ({ level: field().levels[Number(own.value)] }));
  choose('show', (own) => ({ show: shows[Number(own.value)] }));
  choose('start', (own) => ({ start: Number(own.value) + 1 }));
  choose('member', (own) => ({ member: about.members[Number(own.value)] }));
  choose('lead', (own) => ({ lead: Number(own.value) + 1 }));
  choose('above', (own) => {
    const { low, high } = field().limits[state.level].value;
    return { above: low + (high - low) * Number(own.value) / 100 };
  });
  $('controls').addEventListener('submit', (event) => event.preventDefault());
  $('play').addEventListener('click', play);
  $('closer').addEventListener('click', () => { globe.view.zoomBy(1.4); moved(false); });
  $('further').addEventListener('click', () => { globe.view.zoomBy(1 / 1.4); moved(false); });
  $('flat').addEventListener('click', () => set({ map: globe.view.flat ? 'globe' : 'flat' }));
  $('cells').addEventListener('click', () => { globe.cells = !globe.cells; showControls(); moved(false); });
  $('theme').addEventListener('click', () => {
    const dark = state.theme ? state.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
    set({ theme: dark ? 'light' : 'dark' });
  });
  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /SELECT|TEXTAREA/.test(event.target.tagName)) return;
    const turn = (at, by, size) => (at + by + size) % size;
    const actions = {
      ',': () => set({ lead: turn(state.lead, -1, about.leads.length) + 1 }),
      '.': () => set({ lead: turn(state.lead, 1, about.leads.length) + 1 }),
      '[': () => set({ member: about.members[turn(state.member, -1, about.members.length)] }),
      ']': () => set({ member: about.members[turn(state.member, 1, about.members.length)] }),
      p: play,
    };
    actions[event.key]?.();
  });
  handle(globe, {
    moved,
    hover: (place) => { globe.cursor = place && snapped(place); readOut(); globe.draw(); },
    pick: (place) => { globe.cursor = null; set({ point: place.join(',') }); },
  });
  window.addEventListener('hashchange', () => set(fromHash()));
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => draw());
  new ResizeObserver(() => { drawNow(); drawPanels(); }).observe($('sky'));
}

function play() {
  clearInterval(playing);
  playing = playing ? null : setInterval(() => set({ lead: (state.lead + 1) % about.leads.length + 1 }), 700);
  $('play').textContent = playing ? '❚❚' : '▶';
  $('play').setAttribute('aria-label', playing ? 'Stop' : 'Play the leads');
}

/** The globe was turned; roughly while it is held, fine once it rests. */
function moved(held) {
  rough = held;
  clearTimeout(refine);
  if (held) refine = setTimeout(() => moved(false), 160);
  else toHash();
  draw();
}

// --------------------------------------------------------------------------------------------------------- state

function fromHash() {
  return Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
}

function toHash() {
  const { latitude, longitude, zoom, flat } = globe.view;
  const now = { variable: field().name, lead: state.lead + 1, show: state.show };
  if (field().levels) now.level = field().levels[state.level];
  if (several) now.member = about.members[state.member];
  if (about.starts.length > 1) now.start = state.start + 1;
  if (state.show === 'probability') now.above = above();
  if (globe.point) now.point = globe.point.map((x) => Number(x.toFixed(3))).join(',');
  now.view = [latitude.toFixed(1), longitude.toFixed(1), zoom.toFixed(2)].join(',');
  if (flat) now.map = 'flat';
  if (state.theme) now.theme = state.theme;
  try {
    history.replaceState(null, '', `#${new URLSearchParams(now)}`);
  } catch {
    // a frame without an address of its own, as in a notebook, has nowhere to keep it
  }
}

/** Change some of the state; names as in the address. What isn't in this forecast is left as it is. */
function change(wanted) {
  const place = (list, value) => list.findIndex((x) => String(x) === String(value));
  const take = (key, at) => { if (at >= 0) state[key] = at; };
  const level = field().levels?.[state.level];
  if ('variable' in wanted) {
    const before = state.field;
    take('field', place(about.fields.map((f) => f.name), wanted.variable));
    if (state.field !== before) {
      state.above = null;
      state.level = Math.max(0, place(field().levels ?? [], level ?? 500));
    }
  }
  const before = state.level;
  if ('level' in wanted && field().levels) take('level', place(field().levels, wanted.level));
  if (state.level !== before) state.above = null;
  if ('member' in wanted) take('member', place(about.members, wanted.member));
  const counted = (key, size) => {
    const at = Number(wanted[key]) - 1;
    if (key in wanted && Number.isInteger(at) && at >= 0 && at < size) state[key] = at;
  };
  counted('lead', about.leads.length);
  counted('start', about.starts.length);
  if (shows.includes(wanted.show)) state.show = wanted.show;
  if ('above' in wanted && Number.isFinite(Number(wanted.above))) state.above = Number(wanted.above);
  const numbers = (text, size) => {
    const all = String(text).split(',').map(Number);
    return all.length === size && all.every(Number.isFinite) ? all : null;
  };
  const point = 'point' in wanted && numbers(wanted.point, 2);
  if (point && snapped(point)) globe.point = snapped(point);
  const view = 'view' in wanted && numbers(wanted.view, 3);
  if (view) {
    [globe.view.latitude, globe.view.longitude] = [Math.max(-90, Math.min(90, view[0])), wrapped(view[1])];
    globe.view.zoom = Math.max(1, Math.min(12, view[2]));
  }
  if ('map' in wanted) globe.view.flat = wanted.map === 'flat';
  if (wanted.theme === 'light' || wanted.theme === 'dark') {
    state.theme = wanted.theme;
    document.documentElement.dataset.theme = wanted.theme;
  }
}

/** The grid point nearest to a place; null outside of the grid. */
function snapped(place) {
  const k = grid.nearest(place[0], wrapped(place[1]));
  return k < 0 ? null : placeOf(k);
}

/** Change the state, unpack what it needs, draw; done when all is on the page. */
async function set(wanted) {
  change(wanted);
  $('sky').classList.toggle('flat', globe.view.flat);
  showControls();
  const own = block();
  if (!own.means) $('loading').hidden = false;
  try {
    await own.load();
  } catch (error) {
    $('loading').textContent = error.message;
    $('loading').hidden = false;
    throw error;
  }
  keep(own);
  if (own !== block()) return; // another was chosen meanwhile
  $('loading').hidden = true;
  rough = false;
  globe.point ??= snapped([globe.view.latitude, globe.view.longitude]) ?? placeOf(Math.floor(grid.size / 2));
  toHash();
  drawNow();
  drawPanels();
}

/** Forget the blocks that were used longest ago: a large forecast doesn't fit into a phone. */
function keep(own) {
  const at = kept.indexOf(own);
  if (at >= 0) kept.splice(at, 1);
  kept.push(own);
  while (kept.length > MOST_KEPT) {
    const old = kept.shift();
    for (const part of ['loading', 'means', 'truths', 'deviations', 'powers']) delete old[part];
  }
}

// ------------------------------------------------------------------------------------------------------- drawing

function draw() {
  cancelAnimationFrame(frame);
  frame = requestAnimationFrame(() => {
    drawNow();
    if (!rough) drawPanels();
  });
}

function drawNow() {
  const own = block();
  if (!own.means || !$('sky').clientWidth) return;
  const { show, lead, member } = state;
  const key = [own.about.block, show, lead, member, show === 'probability' ? above() : ''].join();
  if (shown?.key !== key) shown = { key, values: own.field(show, lead, member, above()) };
  const { low, high, colours } = limits();
  const missing = pixelOf(getComputedStyle(document.documentElement).getPropertyValue('--missing'));
  const ratio = rough ? 0.6 : Math.min(window.devicePixelRatio || 1, 2);
  globe.paint(shown.values, palettes[colours], low, high, missing, ratio);
  globe.draw();
  readOut();
  drawBar();
}

/** What is shown, in words. */
function showTitle() {
  const { show, member } = state;
  if (show === 'probability') {
    return `probability of more than ${valueText(above(), limitsStep())}${field().units ? ` ${field().units}` : ''}`;
  }
  if (!several && show === 'member') return 'forecast';
  if (!several && show === 'error') return 'forecast − truth';
  if (show === 'member') return `member ${about.members[member]}`;
  if (show === 'error') return `member ${about.members[member]} − truth`;
  return SHOWN[show].title.toLowerCase();
}

function limitsStep() {
  const { low, high } = field().limits[state.level].value;
  return (high - low) / 100;
}

const units = () => (state.show === 'probability' ? '%' : field().units);

function readOut() {
  const place = globe.cursor ?? globe.point;
  const output = $('readout');
  const own = block();
  const found = place && own.means ? valueAt(place) : null;
  for (const key of ['latitude', 'longitude', 'value', 'error']) {
    if (found) output.dataset[key] = found[key];
    else delete output.dataset[key];
  }
  if (!found) {
    output.textContent = '';
    return;
  }
  // of what is computed from many members the bound is far from what is lost; it stays in data-error
  const bounded = !['spread', 'probability'].includes(state.show);
  const number = valueText(found.value, state.show === 'probability' ? 0.5 : found.error);
  const error = bounded ? ` ± ${valueText(found.error, found.error)}` : '';
  const text = Number.isFinite(found.value) ? `${number}${error}${units() ? ` ${units()}` : ''}` : number;
  output.textContent = `${placeText([found.latitude, found.longitude])} · ${text}`;
}

/** What is shown at the grid point nearest to a place. */
function valueAt(place) {
  const k = grid.nearest(place[0], wrapped(place[1]));
  if (k < 0) return null;
  const [latitude, longitude] = placeOf(k);
  const value = block().value(state.show, state.lead, state.member, above(), k);
  return { latitude, longitude, value, error: block().error(state.show, state.lead, above(), k) };
}

function drawBar() {
  const { low, high, colours } = limits();
  const canvas = $('bar-colours');
  const context = canvas.getContext('2d');
  const image = context.createImageData(256, 1);
  new Uint32Array(image.data.buffer).set(palettes[colours]);
  context.putImageData(image, 0, 0);
  canvas.className = { spread: 'high', probability: '' }[state.show] ?? 'both';
  $('bar-label').textContent = `${titleAtLevel()}, ${showTitle()}${inBrackets(units())}`;
  const marks = ticks(low, high, 5);
  const step = marks.length > 1 ? marks[1] - marks[0] : marks[0];
  $('bar-ticks').replaceChildren(...marks.map((mark) => {
    const tick = document.createElement('span');
    tick.textContent = tickText(mark, step);
    tick.style.left = `${100 * (mark - low) / (high - low)}%`;
    return tick;
  }));
  const { latitude, longitude } = globe.view;
  $('picture').textContent = `${titleAtLevel()}, ${showTitle()}, ${leadText()}, seen from above ${placeText([latitude, longitude])}`;
}

function drawPanels() {
  const own = block();
  if (!own.means) return;
  const place = globe.point;
  const shared = {
    block: own,
    field: { units: field().units, titleAtLevel: titleAtLevel() },
    hours: about.hours,
    lead: state.lead,
    leadText: about.leads[state.lead],
    member: state.member,
    members: about.members,
  };
  drawPlume($('plume'), { ...shared, point: grid.nearest(place[0], wrapped(place[1])), placeText: placeText(place) });
  drawSpectrum($('spectrum'), shared);
  if (known) drawScores($('scores'), shared);
}

function describe() {
  $('title').textContent = about.title;
  const count = (n, what) => `${n} ${what}${n === 1 ? '' : 's'}`;
  const starts = about.starts.length > 1 ? count(about.starts.length, 'start') : `start ${about.starts[0]}`;
  $('subtitle').textContent = [starts, several ? count(about.members.length, 'member') : '', `${about.leads.length} leads to ${about.leads.at(-1)}`,
    known ? 'with truth' : '', ...about.facts.filter(([key]) => key === 'Seed').map(([, seed]) => `seed ${seed}`)].filter(Boolean).join(' · ');
  $('warning').hidden = !about.warning;
  $('warning').textContent = about.warning;
  $('notes').hidden = !about.notes.length;
  $('notes').textContent = about.notes.join(' ');
  $('scores-figure').hidden = !known;
  $('facts').replaceChildren(...about.facts.flatMap(([key, text]) => {
    const [term, description] = [document.createElement('dt'), document.createElement('dd')];
    [term.textContent, description.textContent] = [key, text];
    return [term, description];
  }));
}

describe();
state.field = Math.max(0, about.fields.findIndex((f) => f.name === 'geopotential'));
state.level = Math.max(0, (field().levels ?? []).indexOf(500));
listen();
const ready = set(fromHash());
window.xmosaic = {
  about,
  ready,
  set,
  state: () => ({ variable: field().name, level: field().levels?.[state.level] ?? null, lead: state.lead + 1,
    member: about.members[state.member], start: state.start + 1, show: state.show, above: above() }),
  value: (latitude, longitude) => valueAt([latitude, longitude]),
};
ready.then(() => { document.documentElement.dataset.ready = 'true'; });
