// The diagrams beside the globe: series at a point, spectra, scores.

/** Lowest and highest finite number, with some air around them. */
function limitsOf(numbers, air = 0.05) {
  let [low, high] = [Infinity, -Infinity];
  for (const x of numbers) {
    if (x < low) low = x;
    if (x > high) high = x;
  }
  const more = (high - low) * air || Math.abs(high) * 0.01 || 1;
  return low <= high ? { low: low - more, high: high + more } : null;
}

/** Leads as numbers for an axis: days from two days on, else hours. */
function leadAxis(hours) {
  const days = Math.max(...hours) >= 48;
  const values = hours.map((h) => (days ? h / 24 : h));
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const whole = ticks(low, high, 9).filter((x) => Number.isInteger(x));
  return { values, axis: { low, high, marks: whole.length ? whole : values, label: `lead [${days ? 'days' : 'h'}]` } };
}

function empty(host, text) {
  const note = document.createElement('p');
  note.className = 'empty';
  note.textContent = text;
  host.replaceChildren(note);
  host.parentElement.querySelector('.legend')?.remove();
}

function caption(id, text, further) {
  const small = document.createElement('small');
  small.textContent = further;
  document.getElementById(id).replaceChildren(`${text} `, small);
}

const inBrackets = (units) => (units ? ` [${units}]` : '');

/** The series of all members at a grid point. */
function drawPlume(host, { block, field, hours, lead, member, members, point, placeText }) {
  caption('plume-title', `${field.titleAtLevel} at ${placeText}`, 'pick a point on the globe');
  const { values: x, axis } = leadAxis(hours);
  const series = (value) => x.map((at, l) => [at, value(l)]);
  const all = Array.from({ length: block.members }, (_, m) => series((l) => block.member(l, m, point)));
  const truth = series((l) => block.truth(l, point));
  const limits = limitsOf([...all, truth].flat().map(([, y]) => y).filter(Number.isFinite));
  if (!limits) {
    empty(host, 'No value here.');
    return;
  }
  const several = block.members > 1;
  const known = truth.some(([, y]) => Number.isFinite(y));
  const lines = all.map((points) => ({ points, kind: several ? 'members' : 'member' }));
  if (several) lines.push({ points: all[member], kind: 'member' }, { points: series((l) => block.mean(l, point)), kind: 'mean' });
  if (known) lines.push({ points: truth, kind: 'truth' });
  const say = `Series of ${block.members} members${known ? ' and of the truth' : ''} at ${placeText} by lead.`;
  chart(host, { x: axis, y: { ...limits, label: field.units || 'value' }, lines, now: x[lead], say });
  legend(host.parentElement, entriesOf(several, known, members[member], block.members));
}

function entriesOf(several, known, member, count) {
  const entries = several
    ? [['members', `${count} members`], ['member', `member ${member}`], ['mean', 'ensemble mean']]
    : [['member', 'forecast']];
  return known ? [...entries, ['truth', 'truth']] : entries;
}

/** Power by total wavenumber of every member beside the truth's. */
function drawSpectrum(host, { block, field, leadText, lead, member, members }) {
  caption('spectrum-title', 'Spectrum', `${field.titleAtLevel} at ${leadText}`);
  const power = block.spectrum(lead);
  if (!power) {
    empty(host, 'There are no spectra here: the notes above say why, or a value is missing.');
    return;
  }
  const limits = powerLimits(block);
  // wavenumber 0, the mean square of the mean, has no place on a logarithmic axis
  const points = (row) => row.map((y, l) => [l, y]).slice(1);
  const several = block.members > 1;
  const lines = power.members.map((row) => ({ points: points(row), kind: several ? 'members' : 'member' }));
  if (several) lines.push({ points: points(power.members[member]), kind: 'member' }, { points: points(power.mean), kind: 'mean' });
  const known = power.truth !== null && power.truth.some(Number.isFinite);
  if (known) lines.push({ points: points(power.truth), kind: 'truth' });
  const last = power.mean.length - 1;
  const marks = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].filter((l) => l <= last);
  const units = field.units ? ` [${/[ /]/.test(field.units) ? `(${field.units})²` : `${field.units}²`}]` : '';
  chart(host, {
    x: { low: 1, high: Math.max(last, 2), log: true, marks, text: String, label: 'total wavenumber' },
    y: { ...limits, log: true, label: `power${units}` },
    lines,
    say: `Power by total wavenumber of ${block.members} members${known ? ' and of the truth' : ''} at ${leadText}.`,
  });
  legend(host.parentElement, entriesOf(several, known, members[member], block.members));
}

/** The same limits at all leads, so that a change is seen as one. */
function powerLimits(block) {
  if (!block.powerLimits) {
    let [low, high] = [Infinity, 0];
    for (let lead = 0; lead < block.leads; lead++) {
      const power = block.spectrum(lead);
      for (const y of power ? [...power.members, power.mean, power.truth ?? []].flatMap((row) => row.slice(1)) : []) {
        if (y > high) high = y;
        if (y > 0 && y < low) low = y;
      }
    }
    // what lies far below is rounding
    block.powerLimits = { low: Math.max(low, high * 1e-12) / 1.5, high: high * 1.5 };
  }
  return block.powerLimits;
}

/** Scores by lead. */
function drawScores(host, { block, field, hours, lead }) {
  const scores = block.about.scores;
  if (!scores) {
    caption('scores-title', 'Scores', field.titleAtLevel);
    empty(host, 'No truth was given for this field.');
    return;
  }
  const several = block.members > 1;
  caption('scores-title', 'Scores against the truth', `${field.titleAtLevel}, global mean of this start`);
  const { values: x, axis } = leadAxis(hours);
  const kinds = several
    ? [['member', 'rmse', 'RMSE of the mean'], ['mean', 'spread', 'spread'], ['third', 'crps', 'CRPS (fair)']]
    : [['member', 'rmse', 'RMSE'], ['third', 'crps', 'mean absolute error']];
  const lines = kinds.map(([kind, key]) => ({ kind, points: x.map((at, l) => [at, scores[key][l] ?? NaN]) }));
  const limits = limitsOf(lines.flatMap(({ points }) => points.map(([, y]) => y)).filter(Number.isFinite));
  if (!limits) {
    empty(host, 'No scores: a value is missing.');
    return;
  }
  chart(host, {
    x: axis,
    y: { low: 0, high: limits.high, label: field.units || 'score' },
    lines,
    now: x[lead],
    say: `${kinds.map(([, , text]) => text).join(', ')} by lead.`,
  });
  legend(host.parentElement, kinds.map(([kind, , text]) => [kind, text]));
}
