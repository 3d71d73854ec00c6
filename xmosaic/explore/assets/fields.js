// A channel at one start: its fields, spectra and scores.

/** What can be shown. */
const SHOWN = {
  member: { title: 'Member', limits: 'value' },
  mean: { title: 'Ensemble mean', limits: 'value', several: true },
  spread: { title: 'Spread', limits: 'spread', several: true },
  probability: { title: 'Probability above', limits: 'probability', several: true },
  truth: { title: 'Truth', limits: 'value', truth: true },
  error: { title: 'Member − truth', limits: 'difference', truth: true },
  difference: { title: 'Mean − truth', limits: 'difference', truth: true, several: true },
};

class Block {
  /** `about` is the block's entry in the page's description. */
  constructor(about, members, grid) {
    Object.assign(this, { about, members, grid });
    this.leads = about.step.length;
  }

  /** Unpack, once. */
  load() {
    this.loading ??= this.unpack();
    return this.loading;
  }

  async unpack() {
    const text = document.getElementById(`block-${this.about.block}`).textContent;
    const reader = new Reader(await inflate(bytesOf(text)));
    const { rows, columns } = this.grid;
    const fine = () => reader.finePlane(rows, columns);
    this.means = this.about.step.map(fine);
    this.truths = this.about.truth.map((there) => (there ? fine() : null));
    this.deviations = this.about.step.map(() => reader.bytePlanes(this.members, rows, columns));
    this.powers = this.about.spectrum.map((own) => (own ? reader.finePlane(own.rows, own.wavenumbers) : null));
    if (reader.at !== reader.bytes.length) throw new Error('The page is damaged: a field has another size than it says.');
    return this;
  }

  hasTruth(lead) {
    return this.about.truth[lead];
  }

  mean(lead, k) {
    const counted = this.means[lead][k];
    return counted === MISSING_FINE ? NaN : counted * this.about.fine[lead] + this.about.offset[lead];
  }

  truth(lead, k) {
    const counted = this.truths[lead] ? this.truths[lead][k] : MISSING_FINE;
    return counted === MISSING_FINE ? NaN : counted * this.about.fine[lead] + this.about.offset[lead];
  }

  member(lead, member, k) {
    const counted = this.deviations[lead][member * this.grid.size + k];
    return counted === MISSING ? NaN : this.mean(lead, k) + counted * this.about.step[lead];
  }

  /** Standard deviation of the members, with M − 1. */
  spread(lead, k) {
    let [sum, squares, number] = [0, 0, 0];
    for (let m = 0; m < this.members; m++) {
      const counted = this.deviations[lead][m * this.grid.size + k];
      if (counted === MISSING) return NaN;
      sum += counted;
      squares += counted * counted;
      number += 1;
    }
    return this.about.step[lead] * Math.sqrt(Math.max(0, squares - sum * sum / number) / (number - 1));
  }

  /** Share of the members above a value [%]. */
  probability(lead, k, above) {
    const limit = (above - this.mean(lead, k)) / this.about.step[lead];
    if (Number.isNaN(limit)) return NaN;
    let [over, number] = [0, 0];
    for (let m = 0; m < this.members; m++) {
      const counted = this.deviations[lead][m * this.grid.size + k];
      if (counted === MISSING) continue;
      number += 1;
      if (counted > limit) over += 1;
    }
    return number ? 100 * over / number : NaN;
  }

  /** What is shown, at one grid point. */
  value(shown, lead, member, above, k) {
    switch (shown) {
      case 'mean': return this.mean(lead, k);
      case 'truth': return this.truth(lead, k);
      case 'spread': return this.spread(lead, k);
      case 'probability': return this.probability(lead, k, above);
      case 'error': return this.member(lead, member, k) - this.truth(lead, k);
      case 'difference': return this.mean(lead, k) - this.truth(lead, k);
      default: return this.member(lead, member, k);
    }
  }

  /** What is shown, everywhere. */
  field(shown, lead, member, above) {
    const out = new Float32Array(this.grid.size);
    for (let k = 0; k < out.length; k++) out[k] = this.value(shown, lead, member, above, k);
    return out;
  }

  /** By how much a value can be off, at most, for having been packed. */
  error(shown, lead, above, k) {
    const [coarse, fine] = [this.about.step[lead] / 2, this.about.fine[lead] / 2];
    // of one member nothing deviates from the mean, which is kept in fine steps
    const own = this.members > 1 ? coarse : fine;
    switch (shown) {
      case 'mean': case 'truth': return fine;
      case 'difference': return 2 * fine;
      case 'error': return own + fine;
      case 'spread': return own * Math.sqrt(this.members / (this.members - 1));
      case 'probability': return this.undecided(lead, above, k);
      default: return own;
    }
  }

  /** Share of the members so near to a value that packing may have carried them over it [%]. */
  undecided(lead, above, k) {
    const limit = (above - this.mean(lead, k)) / this.about.step[lead];
    let [near, number] = [0, 0];
    for (let m = 0; m < this.members; m++) {
      const counted = this.deviations[lead][m * this.grid.size + k];
      if (counted === MISSING) continue;
      number += 1;
      if (Math.abs(counted - limit) <= 0.5) near += 1;
    }
    return number ? 100 * near / number : NaN;
  }

  /** Power by wavenumber of the members, of the mean and, where there is one, of the truth; null without spectra. */
  spectrum(lead) {
    const own = this.about.spectrum[lead];
    if (!own) return null;
    const row = (which) => Array.from({ length: own.wavenumbers }, (_, l) => {
      const counted = this.powers[lead][which * own.wavenumbers + l];
      return counted === MISSING_FINE ? NaN : 10 ** (own.first + counted * own.step);
    });
    const members = Array.from({ length: this.members }, (_, m) => row(m));
    return { members, mean: row(this.members), truth: own.rows > this.members + 1 ? row(this.members + 1) : null };
  }
}
