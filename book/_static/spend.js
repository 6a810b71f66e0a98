/* Spend your steps: the mathematics (this half) and the figure (the other half), without any other script.
 *
 * Data are Gaussians of equal weight and of standard deviation w about `means`; data plus noise of size sigma is the
 * same with variance w^2 + sigma^2, so that the best denoiser is known in closed form. A deterministic solver maps the
 * start z to an end y = F(z). KL(data || generated) is the integral of p log(p / q), where q(y) sums p_0(z) / |F'(z)|
 * over all z with F(z) = y. The start is the exact law at sigma = 80: all error is the solver's.
 */
(function () {
"use strict";

const LOW = 0.002, HIGH = 80, SPAN = Math.log(HIGH / LOW), LOG_2PI = Math.log(2 * Math.PI);
const grids = () => window.SPEND_GRIDS || { grids: {}, widths: [], counts: [], means: {} };

// ---------------------------------------------------------------------------------------------------------------
// The data

/** Gaussians of variance w2 about sorted means. at(x, sigma, out): out = [denoised, its slope in x, log density]. */
function mixture(means, w2) {
  const m = Float64Array.from(means).sort(), K = m.length;
  function at(x, sigma, out) {
    const s2 = sigma * sigma, total = w2 + s2, half = 0.5 / total, own = s2 / total;
    let k = 0, end = K - 1; // the nearest mean; then outwards, until a component weighs less than e^-40 of its share
    while (end - k > 1) { const c = (k + end) >> 1; if (m[c] <= x) k = c; else end = c; }
    if (Math.abs(m[end] - x) < Math.abs(m[k] - x)) k = end;
    const best = (x - m[k]) * (x - m[k]);
    let sum = 1, first = 0, second = 0;
    for (let side = -1; side < 2; side += 2)
      for (let j = k + side; j >= 0 && j < K; j += side) {
        const e = (best - (x - m[j]) * (x - m[j])) * half;
        if (e < -40) break;
        const p = Math.exp(e), d = m[j] - m[k];
        sum += p; first += p * d; second += p * d * d;
      }
    const mean = first / sum;
    out[0] = w2 / total * x + own * (m[k] + mean);
    out[1] = w2 / total + own * own * Math.max(0, second / sum - mean * mean) / s2;
    out[2] = Math.log(sum / K) - best * half - 0.5 * (LOG_2PI + Math.log(total));
  }
  function logDensity(x, sigma) {
    const total = w2 + sigma * sigma, half = 0.5 / total;
    let best = Infinity, sum = 0;
    for (let j = 0; j < K; j++) best = Math.min(best, (x - m[j]) * (x - m[j]));
    for (let j = 0; j < K; j++) sum += Math.exp((best - (x - m[j]) * (x - m[j])) * half);
    return Math.log(sum / K) - best * half - 0.5 * (LOG_2PI + Math.log(total));
  }
  /** log of P(X < x) (side -1) or P(X > x) (side 1) at noise sigma. */
  function logTail(x, sigma, side) {
    const s = Math.sqrt(2 * (w2 + sigma * sigma));
    let top = -Infinity, sum = 0;
    for (let k = 0; k < K; k++) {
      const term = logErfc(side * (x - m[k]) / s);
      if (term > top) { sum = sum * Math.exp(top - term) + 1; top = term; } else if (term > top - 40) sum += Math.exp(term - top);
    }
    return top + Math.log(sum / (2 * K));
  }
  return { means: m, w2, at, logDensity, logTail };
}

/** log erfc(x), to about 1e-10: the power series of erf near 0, the continued fraction of erfc beyond. */
function logErfc(x) {
  if (x < -2) return Math.log(2 - Math.exp(logErfc(-x)));
  if (x < 2) {
    let term = x, sum = x;
    for (let k = 1; k < 60 && Math.abs(term) > 1e-14 * Math.abs(sum); k++) { term *= -x * x / k; sum += term / (2 * k + 1); }
    return Math.log(1 - 2 / Math.sqrt(Math.PI) * sum);
  }
  let f = 0;
  for (let k = x < 4 ? 40 : 15; k > 0; k--) f = k / 2 / (x + f);
  return -x * x - Math.log(Math.sqrt(Math.PI) * (x + f));
}

/** The data of a state, with its error curve: eps2 at 385 noise levels, and both clocks as integrals of it. */
const kept = new Map();
function remember(key, make) {
  if (!kept.has(key)) { if (kept.size > 400) kept.clear(); kept.set(key, make()); }
  return kept.get(key);
}
function dataOf(state) {
  return remember(`data ${state.data} ${state.data === "power" ? "" : state.w}`, () => {
    const w = state.w, data = { name: state.data };
    if (state.data === "power") {
      data.variances = Array.from({ length: grids().directions || 300 }, (_, k) => 1 / ((k + 1) * (k + 1)));
    } else {
      data.mixture = mixture((grids().means[state.data] || [0]).map((one) => one * Math.sqrt(Math.max(0, 1 - w * w))), w * w);
      if (data.mixture.means.every((one) => one === data.mixture.means[0])) data.variances = [w * w];
    }
    const knots = 385, x = [], eps2 = [];
    for (let i = 0; i < knots; i++) {
      x.push(Math.log(LOW) + SPAN * i / (knots - 1));
      eps2.push(meanSquaredError(data, Math.exp(x[i])));
    }
    data.clocks = {
      entropic: clock(x, eps2.map((e, i) => e / Math.exp(2 * x[i]))),
      rescaled: clock(x, eps2.map((e, i) => e / Math.exp(x[i]))),
    };
    return data;
  });
}

/** E |x0 - D(x)|^2: closed for Gaussian data, else the trapezoid rule for p(x) Var[x0 | x], Var = sigma^2 D'. */
function meanSquaredError(data, sigma) {
  const s2 = sigma * sigma;
  if (data.variances) return data.variances.reduce((sum, c2) => sum + c2 * s2 / (c2 + s2), 0);
  const { means, w2, at } = data.mixture, s = Math.sqrt(w2 + s2), h = s / 5, out = [0, 0, 0];
  let sum = 0, x = means[0] - 8 * s;
  for (let k = 0; k < means.length; k++) {
    if (x < means[k] - 8 * s) x += h * Math.ceil((means[k] - 8 * s - x) / h); // nothing lies between
    for (; x < means[k] + 8 * s; x += h) { at(x, sigma, out); sum += Math.exp(out[2]) * out[1]; }
  }
  return h * sum * s2;
}

/** phi with dphi / dlog sigma = rate, known at equal steps of log sigma: sixth-order sums, cubic between. */
function clock(x, rate) {
  const h = x[1] - x[0], n = x.length, phi = [0];
  const c = [11, -93, 802, 802, -93, 11];
  for (let i = 0; i < n - 1; i++) {
    let part = 0;
    if (i < 2 || i > n - 4) { // the ends: the rule of Simpson's kind that leans inwards
      const f = i < 2 ? [rate[i], rate[i + 1], rate[i + 2], rate[i + 3]] : [rate[i + 1], rate[i], rate[i - 1], rate[i - 2]];
      part = (9 * f[0] + 19 * f[1] - 5 * f[2] + f[3]) / 24;
    } else for (let k = 0; k < 6; k++) part += c[k] * rate[i - 2 + k] / 1440;
    phi.push(phi[i] + h * Math.max(part, 0));
  }
  function locate(value) {
    let i = 0, end = n - 1;
    while (end - i > 1) { const mid = (i + end) >> 1; if (phi[mid] <= value) i = mid; else end = mid; }
    return i;
  }
  const risen = (i, u) => {
    const rise = phi[i + 1] - phi[i], a = h * rate[i], b = h * rate[i + 1];
    return u * (a + u * (3 * rise - 2 * a - b + u * (a + b - 2 * rise)));
  };
  return {
    x, rate, phi,
    at(sigma) { const p = Math.min(Math.max((Math.log(sigma) - x[0]) / h, 0), n - 1), i = Math.min(Math.floor(p), n - 2); return phi[i] + risen(i, p - i); },
    rateAt(sigma) { const p = Math.min(Math.max((Math.log(sigma) - x[0]) / h, 0), n - 1), i = Math.min(Math.floor(p), n - 2); return rate[i] + (p - i) * (rate[i + 1] - rate[i]); },
    sigmaAt(value) {
      const i = locate(value);
      let low = 0, high = 1;
      for (let k = 0; k < 52; k++) { const u = (low + high) / 2; if (phi[i] + risen(i, u) < value) low = u; else high = u; }
      return Math.exp(x[i] + h * (low + high) / 2);
    },
  };
}

// ---------------------------------------------------------------------------------------------------------------
// Schedules: n levels from 80 down; the last step, to 0, is understood

const OFFSET = 0.008, QUARTER = Math.PI / 2 / (1 + OFFSET), BEGIN = OFFSET * QUARTER; // the cosine process
const cosine = {
  t(sigma) {
    const square = sigma * sigma, angle = Math.atan2(Math.sqrt(square + Math.sin(BEGIN) ** 2), Math.cos(BEGIN));
    const sine = square / (1 + square) * Math.cos(BEGIN) ** 2 / Math.sin(angle + BEGIN);
    return Math.atan2(sine, Math.cos(angle - BEGIN)) / QUARTER;
  },
  sigma: (t) => Math.sqrt(Math.sin(t * QUARTER) * Math.sin(t * QUARTER + 2 * BEGIN)) / Math.sin((1 - t) * QUARTER),
};

/** The clock in which a schedule is uniform: forward and backward; null where it has none. */
function clockOf(name, state) {
  if (name === "edm") return { at: (s) => s ** (1 / state.rho), sigmaAt: (t) => t ** state.rho };
  if (name === "log") return { at: Math.log, sigmaAt: Math.exp };
  if (name === "cosine") return { at: cosine.t, sigmaAt: cosine.sigma };
  if (name === "entropic" || name === "rescaled") return dataOf(state).clocks[name];
  return null;
}

/** The levels of a schedule, or null where none is known; `note` of the result says what a precomputed grid is for. */
function levelsOf(name, state) {
  if (name === "yours") return state.sigmas;
  const own = clockOf(name, state);
  if (own) {
    const a = own.at(HIGH), b = own.at(LOW), n = state.n;
    return Array.from({ length: n }, (_, i) => i === 0 ? HIGH : i === n - 1 ? LOW : own.sigmaAt(a + (b - a) * i / (n - 1)));
  }
  return precomputed(name === "aware" ? 0 : 1, state);
}

function nearest(list, value) {
  return list.reduce((best, one) => Math.abs(Math.log(one / value)) < Math.abs(Math.log(best / value)) ? one : best, list[0]);
}

function precomputed(which, state) {
  const { grids: all, widths, counts } = grids();
  const find = (n) => {
    if (state.data === "power") return { w: null, grid: all[`power/${state.solver}/${state.metric}/${n}`] };
    for (const w of [...widths].sort((a, b) => Math.abs(Math.log(a / state.w)) - Math.abs(Math.log(b / state.w)))) {
      const grid = all[`${w === 1 ? "gaussian" : state.data}/${w}/${state.solver}/kl/${n}`];
      if (grid) return { w, grid };
    }
    return {};
  };
  for (const n of [...counts].sort((a, b) => Math.abs(Math.log(a / state.n)) - Math.abs(Math.log(b / state.n)))) {
    const { w, grid } = find(n);
    if (!grid) continue;
    const levels = resample([HIGH, ...grid[which].map((one) => HIGH * Math.exp(one))], state.n);
    const other = [];
    if (w !== null && Math.abs(w - state.w) > 1e-9) other.push(`w = ${w}`);
    if (n !== state.n) other.push(`n = ${n}`);
    levels.note = other.length ? `made for ${other.join(", ")}` : "";
    return levels;
  }
  return null;
}

/** As many levels as wanted, by straight lines through log sigma over the levels' numbers. */
function resample(levels, n) {
  if (levels.length === n) return levels.slice();
  return Array.from({ length: n }, (_, i) => {
    const at = i * (levels.length - 1) / (n - 1), k = Math.min(Math.floor(at), levels.length - 2);
    return levels[k] * (levels[k + 1] / levels[k]) ** (at - k);
  });
}

// ---------------------------------------------------------------------------------------------------------------
// Solvers

/** One step of a deterministic solver on a state and its slope, both in place: [x, slope]. past: of the step before. */
function step(solver, mix, v, sigma, next, past, out) {
  mix.at(v[0], sigma, out);
  const d = out[0], dd = out[1] * v[1];
  if (next === 0) { v[0] = d; v[1] = dd; return; }
  const r = next / sigma, x = v[0], s = v[1];
  if (solver === "2m") {
    let e = d, de = dd;
    if (past.sigma) {
      const c = Math.log(sigma / next) / (2 * Math.log(past.sigma / sigma));
      e = (1 + c) * d - c * past.d; de = (1 + c) * dd - c * past.dd;
    }
    v[0] = r * x + (1 - r) * e; v[1] = r * s + (1 - r) * de;
    past.sigma = sigma; past.d = d; past.dd = dd;
    return;
  }
  const y = d + r * (x - d), dy = dd + r * (s - dd);
  if (solver === "heun") {
    mix.at(y, next, out);
    const h = (next - sigma) / 2;
    v[0] = x + h * ((x - d) / sigma + (y - out[0]) / next);
    v[1] = s + h * ((s - dd) / sigma + (dy - out[1] * dy) / next);
  } else { v[0] = y; v[1] = dy; }
}

/** The whole walk as a problem of one map: see `law`. */
function walkOf(mix, solver, levels) {
  const out = [0, 0, 0], n = levels.length, w = Math.sqrt(mix.w2), v = [0, 0];
  return {
    mix, target: 0, monotone: solver === "ddim",
    scales: [...levels.slice(1), w],
    logStart: (z) => mix.logDensity(z, levels[0]),
    reach: startReach(mix, levels[0]),
    map(z, xs, ss) {
      const past = { sigma: 0, d: 0, dd: 0 };
      v[0] = z; v[1] = 1;
      for (let i = 0; i < n; i++) {
        step(solver, mix, v, levels[i], i + 1 < n ? levels[i + 1] : 0, past, out);
        xs[i] = v[0]; ss[i] = v[1];
      }
    },
  };
}

/** Step i alone, from the exact law at its level, for 2M with an exact past too. */
function stepOf(mix, solver, levels, i) {
  const out = [0, 0, 0], sigma = levels[i], next = i + 1 < levels.length ? levels[i + 1] : 0, v = [0, 0];
  return {
    mix, target: next, monotone: solver === "ddim", scales: [Math.sqrt(mix.w2 + next * next)],
    logStart: (z) => mix.logDensity(z, sigma),
    reach: startReach(mix, sigma),
    map(z, xs, ss) {
      const past = { sigma: 0, d: 0, dd: 0 };
      if (solver === "2m" && i > 0 && next > 0) {
        const before = flow(mix, z, sigma, levels[i - 1]);
        mix.at(before[0], levels[i - 1], out);
        past.sigma = levels[i - 1]; past.d = out[0]; past.dd = out[1] * before[1];
      }
      v[0] = z; v[1] = 1;
      step(solver, mix, v, sigma, next, past, out);
      xs[0] = v[0]; ss[0] = v[1];
    },
  };
}

const startReach = (mix, sigma) => {
  const s = 9.5 * Math.sqrt(mix.w2 + sigma * sigma);
  return [mix.means[0] - s, mix.means[mix.means.length - 1] + s];
};

/** The exact path from x at sigma to another noise level, and its slope: it keeps the share of the mass below it. */
function flow(mix, x, sigma, other) {
  const side = mix.logTail(x, sigma, -1) < mix.logTail(x, sigma, 1) ? -1 : 1;
  const wanted = mix.logTail(x, sigma, side), s = Math.sqrt(mix.w2 + other * other);
  const middle = (mix.means[0] + mix.means[mix.means.length - 1]) / 2;
  let low = middle - 3 * s, high = middle + 3 * s; // side -1: the tail rises with y
  const below = (y) => (mix.logTail(y, other, side) < wanted) === (side < 0);
  for (let k = 2; !below(low) && k < 1e9; k *= 2) low -= k * s;
  for (let k = 2; below(high) && k < 1e9; k *= 2) high += k * s;
  let y = Math.min(Math.max(x * s / Math.sqrt(mix.w2 + sigma * sigma), low), high);
  for (let k = 0; k < 60; k++) {
    const tail = mix.logTail(y, other, side), density = Math.exp(mix.logDensity(y, other) - tail);
    if ((tail < wanted) === (side < 0)) low = y; else high = y;
    const move = (wanted - tail) / (-side * density), trial = y + move;
    if (Math.abs(move) < 1e-7 * s) break;
    y = trial > low && trial < high ? trial : (low + high) / 2;
  }
  return [y, Math.exp(mix.logDensity(x, sigma) - mix.logDensity(y, other))];
}

// ---------------------------------------------------------------------------------------------------------------
// The law of y = F(z)

/** Branches of F and the density they give. Intervals are halved until a cubic follows every state of the walk. */
function law(problem) {
  const { mix, scales, map } = problem, n = scales.length, s = Math.sqrt(mix.w2 + problem.target ** 2), K = mix.means.length;
  const sizes = scales.map((one) => 0.2 * one);
  sizes[n - 1] = 0.04 * s;
  const node = (z) => { const xs = new Float64Array(n), ss = new Float64Array(n); map(z, xs, ss); return { z, xs, ss, y: xs[n - 1], dy: ss[n - 1] }; };
  const low = mix.means[0] - 8 * s, high = mix.means[K - 1] + 8 * s;
  const empty = (a, b) => { // no component within 8 of its widths of [a, b]
    for (let k = 0; k < K; k++) if (mix.means[k] > a - 8 * s && mix.means[k] < b + 8 * s) return false;
    return true;
  };
  const nodes = [];
  function between(a, b, depth) {
    const m = node((a.z + b.z) / 2), h = b.z - a.z;
    let good = depth > 46 || m.z <= a.z || m.z >= b.z;
    if (!good) {
      good = true;
      const gap = empty(Math.min(a.y, b.y, m.y), Math.max(a.y, b.y, m.y));
      for (let i = problem.monotone ? n - 1 : 0; i < n && good; i++) {
        if (i === n - 1 && gap) continue;
        good = Math.abs(m.xs[i] - (a.xs[i] + b.xs[i]) / 2 - h * (a.ss[i] - b.ss[i]) / 8) <= sizes[i];
      }
      if (good && !gap && h > 0 && (a.dy > 0) !== (m.dy > 0) && depth < 12) good = false;
    }
    if (good) { nodes.push(m, b); return; }
    between(a, m, depth + 1); between(m, b, depth + 1);
  }
  const [left, right] = problem.reach, first = 48;
  const seeds = Array.from({ length: first + 1 }, (_, i) => node(left + (right - left) * i / first));
  for (const side of [-1, 1]) { // further out, until F has passed the data
    let end = side < 0 ? seeds[0] : seeds[seeds.length - 1], far = (right - left) / 8;
    for (let k = 0; k < 110 && end.y > low && end.y < high; k++, far *= 1.3) {
      end = node(end.z + side * far);
      if (side < 0) seeds.unshift(end); else seeds.push(end);
    }
  }
  nodes.push(seeds[0]);
  for (let i = 1; i < seeds.length; i++) between(seeds[i - 1], seeds[i], 0);

  // turning points, and the branches between them
  const branches = [], turning = [];
  let branch = [nodes[0]];
  for (let i = 1; i < nodes.length; i++) {
    const a = nodes[i - 1], b = nodes[i];
    if (a.dy * b.dy < 0) {
      let p = a.z, q = b.z, m = a;
      for (let k = 0; k < 50; k++) { m = node((p + q) / 2); if ((m.dy > 0) === (a.dy > 0)) p = m.z; else q = m.z; }
      turning.push(m.y);
      branch.push(m); branches.push(branch); branch = [m];
    }
    branch.push(b);
  }
  branches.push(branch);

  const xs = new Float64Array(n), ss = new Float64Array(n);
  /** z on a branch with F(z) = y, and the slope there: the inverse cubic, then Newton's method inside its bracket. */
  function root(nodes, y) {
    const up = nodes[nodes.length - 1].y >= nodes[0].y;
    let i = 0, end = nodes.length - 1;
    if (up ? y < nodes[0].y || y > nodes[end].y : y > nodes[0].y || y < nodes[end].y) return null;
    while (end - i > 1) { const c = (i + end) >> 1; if (nodes[c].y <= y === up) i = c; else end = c; }
    const a = nodes[i], b = nodes[end], rise = b.y - a.y, u = rise === 0 ? 0.5 : (y - a.y) / rise, h = b.z - a.z;
    const p = Math.min(rise / a.dy / h, 3), q = Math.min(rise / b.dy / h, 3);
    let lo = a.z, hi = b.z, z = a.z + h * (u * (p + u * (3 - 2 * p - q + u * (p + q - 2)))), slope = 0;
    if (!(z >= lo && z <= hi)) z = a.z + u * h;
    let zBefore = NaN, slopeBefore = NaN;
    for (let k = 0; k < 60; k++) {
      map(z, xs, ss);
      const off = xs[n - 1] - y; slope = ss[n - 1];
      if (off < 0 === up) lo = z; else hi = z;
      const trial = z - off / slope;
      if (Math.abs(off) < (k ? 1e-5 : 1e-9) * s && trial > lo && trial < hi) { // the slope follows by its own difference
        if (k) slope += (slope - slopeBefore) / (z - zBefore) * (trial - z);
        z = trial;
        break;
      }
      if (hi - lo < 1e-15 * Math.abs(z)) break;
      zBefore = z; slopeBefore = slope;
      z = trial > lo && trial < hi && k % 6 < 5 ? trial : (lo + hi) / 2;
    }
    return [z, slope];
  }
  function logDensity(y) {
    let top = -Infinity, sum = 0;
    for (const one of branches) {
      const found = root(one, y);
      if (!found) continue;
      const term = problem.logStart(found[0]) - Math.log(Math.abs(found[1]));
      if (term > top) { sum = sum * Math.exp(top - term) + 1; top = term; } else sum += Math.exp(term - top);
    }
    return top + Math.log(sum);
  }
  let bottom = Infinity, top = -Infinity;
  for (const one of nodes) { bottom = Math.min(bottom, one.y); top = Math.max(top, one.y); }
  for (const y of turning) { bottom = Math.min(bottom, y); top = Math.max(top, y); }
  return { branches, turning, logDensity, bottom, top, size: s, nodes: nodes.length };
}

const GK = { // Gauss-Kronrod, 7 and 15 nodes
  x: [0.991455371120812639, 0.949107912342758525, 0.864864423359769073, 0.741531185599394440, 0.586087235467691130, 0.405845151377397167, 0.207784955007898468, 0],
  k: [0.022935322010529225, 0.063092092629978553, 0.104790010322250184, 0.140653259715525919, 0.169004726639267903, 0.190350578064785410, 0.204432940075298892, 0.209482141084727828],
  g: [0, 0.129484966168869693, 0, 0.279705391489276668, 0, 0.381830050505118945, 0, 0.417959183673469388],
};

/** KL(p || q) of a problem in nats: panels over the components, halved where 7 and 15 nodes disagree. */
function divergence(problem) {
  const found = law(problem), { mix, target } = problem, s = found.size;
  const cut = 6.5 * s, pieces = [];
  let lost = 0; // mass of the data where nothing is generated
  for (const m of mix.means)
    lost += Math.exp(logErfc((m - found.bottom) / s / Math.SQRT2)) / 2 + Math.exp(logErfc((found.top - m) / s / Math.SQRT2)) / 2;
  if (lost / mix.means.length > 1e-9) return Infinity;
  for (const m of mix.means) {
    const a = Math.max(m - cut, found.bottom), b = Math.min(m + cut, found.top), last = pieces[pieces.length - 1];
    if (!(b > a)) continue;
    if (last && a <= last[1]) last[1] = b; else pieces.push([a, b]);
  }
  const folded = found.turning.length > 0;
  const panels = [];
  for (const [a, b] of pieces) {
    const inner = found.turning.filter((y) => y > a && y < b).sort((p, q) => p - q), cuts = [a, ...inner, b];
    for (let i = 1; i < cuts.length; i++) {
      const parts = Math.max(1, Math.ceil((cuts[i] - cuts[i - 1]) / (2.6 * s)));
      for (let k = 0; k < parts; k++)
        panels.push(panel(cuts[i - 1] + (cuts[i] - cuts[i - 1]) * k / parts, cuts[i - 1] + (cuts[i] - cuts[i - 1]) * (k + 1) / parts));
    }
  }
  function term(y) {
    const log = mix.logDensity(y, target), p = Math.exp(log);
    return p < 1e-300 ? 0 : p * (log - found.logDensity(y));
  }
  function panel(a, b) {
    const c = (a + b) / 2, h = (b - a) / 2;
    const values = [], shares = [];
    let k15 = 0, g7 = 0, spread = 0;
    for (let i = 0; i < 8; i++)
      for (const t of i < 7 ? [GK.x[i], -GK.x[i]] : [0]) {
        // where F folds, q is infinite at an end: y = smooth(t) is flat there
        const f = folded ? term(c + h * t * (3 - t * t) / 2) * 1.5 * (1 - t * t) : term(c + h * t);
        values.push(f); shares.push(GK.k[i]);
        k15 += GK.k[i] * f; g7 += GK.g[i] * f;
      }
    // the estimate of QUADPACK (Piessens et al. 1983): the two rules differ by far more than the finer one errs
    for (let i = 0; i < 15; i++) spread += shares[i] * Math.abs(values[i] - k15 / 2);
    const error = spread > 0 ? h * spread * Math.min(1, (200 * Math.abs(k15 - g7) / spread) ** 1.5) : 0;
    return { a, b, value: h * k15, error };
  }
  let total = 0;
  for (const one of panels) total += one.value;
  for (let k = 0; panels.length && k < (folded ? 1500 : 400); k++) {
    let worst = 0, errors = 0;
    for (let i = 0; i < panels.length; i++) { errors += panels[i].error; if (panels[i].error > panels[worst].error) worst = i; }
    if (errors < 1e-11 + 1e-3 * Math.abs(total)) break;
    const { a, b } = panels[worst], halves = [panel(a, (a + b) / 2), panel((a + b) / 2, b)];
    panels.splice(worst, 1, ...halves);
    total = panels.reduce((sum, one) => sum + one.value, 0);
  }
  divergence.work = [found.nodes, found.branches.length, panels.length];
  return Math.max(total, 0);
}

// ---------------------------------------------------------------------------------------------------------------
// Gaussian data: each direction is multiplied by a known number

/** Standard deviation over the exact one of a direction of variance c2 at each level and at 0, from the exact law. */
function ratios(c2, solver, levels) {
  const n = levels.length, found = [1];
  let x = Math.sqrt(c2 + levels[0] ** 2), square = x * x, before = 0;
  for (let i = 0; i < n; i++) {
    const sigma = levels[i], u = c2 / (c2 + sigma * sigma), next = i + 1 < n ? levels[i + 1] : 0, r = next / sigma, d = u * x;
    if (solver === "sddim") square = next === 0 ? u * u * square : (u + r * r * (1 - u)) ** 2 * square + next * next * (1 - r * r);
    else if (next === 0) x = d;
    else if (solver === "2m") {
      const c = i ? Math.log(sigma / next) / (2 * Math.log(levels[i - 1] / sigma)) : 0;
      x = r * x + (1 - r) * ((1 + c) * d - c * before); before = d;
    } else {
      const y = d + r * (x - d);
      x = solver === "heun" ? x + (next - sigma) / 2 * ((x - d) / sigma + (1 - c2 / (c2 + next * next)) * y / next) : y;
    }
    found.push((solver === "sddim" ? Math.sqrt(square) : Math.abs(x)) / Math.sqrt(c2 + next * next));
  }
  return found;
}

/** The ratio at the end if step i alone is the solver's and all others are exact. */
function ratioOfStep(c2, solver, levels, i) {
  const sigma = levels[i], next = i + 1 < levels.length ? levels[i + 1] : 0, r = next / sigma;
  const u = c2 / (c2 + sigma * sigma), exact = Math.sqrt(c2 + next * next), x = Math.sqrt(c2 + sigma * sigma);
  if (next === 0) return u * x / exact;
  if (solver === "sddim") { // of a relative error of the variance the share u' ^ 2 / (c2 / v) is left: draw x0 given x
    const v = (u + r * r * (1 - u)) ** 2 * x * x + next * next * (1 - r * r), g = c2 / (c2 + next * next);
    return Math.sqrt((g * g * v + c2 * (1 - g)) / c2);
  }
  if (solver === "2m" && i > 0) {
    const p = levels[i - 1], c = Math.log(sigma / next) / (2 * Math.log(p / sigma)), before = c2 / Math.sqrt(c2 + p * p);
    return Math.abs(r * x + (1 - r) * ((1 + c) * u * x - c * before)) / exact;
  }
  return ratios(c2, solver, [sigma, next])[1];
}

function gaussianDistance(data, state, ratioOf) {
  let sum = 0;
  for (const c2 of data.variances) {
    const r = ratioOf(c2), e = r - 1;
    if (state.metric === "w2" && data.name === "power") sum += c2 * e * e;
    else if (data.name === "power") sum += e * e / 2 + e - Math.log1p(e); // generated || data
    else { const f = 1 / (r * r) - 1; sum += (f - Math.log1p(f)) / 2; } // data || generated
  }
  return sum;
}

/** The distance at the end, and the price of each step. */
function distance(state, levels) {
  const data = dataOf(state);
  if (data.variances) return gaussianDistance(data, state, (c2) => ratios(c2, state.solver, levels)[levels.length]);
  return divergence(walkOf(data.mixture, state.solver, levels));
}
function price(state, levels, i) {
  const data = dataOf(state);
  return data.variances
    ? gaussianDistance(data, state, (c2) => ratioOfStep(c2, state.solver, levels, i))
    : divergence(stepOf(data.mixture, state.solver, levels, i));
}
const prices = (state, levels) => levels.map((_, i) => price(state, levels, i));

const mathematics = { divergence, LOW, HIGH, dataOf, levelsOf, clockOf, distance, prices, ratios, resample, law, walkOf, flow, mixture, precomputed, nearest, remember, meanSquaredError };
window.SpendYourSteps = mathematics;

// ---------------------------------------------------------------------------------------------------------------
// The figure

const DATA = { gaussian: "one Gaussian", two: "two points", fifteen: "15 positions", power: "power law" };
const SOLVERS = { ddim: "DDIM", heun: "Heun", "2m": "DPM-Solver++(2M)", sddim: "stochastic DDIM" };
const NAMES = { edm: "EDM", log: "log", cosine: "cosine", entropic: "entropic", rescaled: "rescaled", aware: "solver-aware", best: "searched", yours: "yours" };
const DEFAULT = { data: "fifteen", w: 0.02, n: 8, solver: "ddim", schedule: "rescaled", clock: "own", rho: 7, metric: "kl" };
const STORIES = [
  ["Equal areas", {}, "Each slice holds the same area under the clock's integrand: that is the whole method. Drag a level, and the slices beside it become unequal. Which of these three schedules comes closest to the data?"],
  ["Narrow", { w: 0.005, n: 16, schedule: "entropic" }, "Components as narrow as 0.005. Which of these comes closest?"],
  ["A tie", { w: 0.05, n: 16, schedule: "entropic" }, "Ten times wider, w = 0.05. Which of the two clocks, entropic or rescaled, comes closer now?"],
  ["Wide", { w: 0.5, n: 16 }, "Half as wide as the data. Which of these comes closest?"],
  ["One Gaussian", { data: "gaussian", w: 1 }, "For one Gaussian the rescaled clock is the arctangent of sigma / w. Drag any level between the two ends with DDIM: can you beat it?"],
  ["Heun", { data: "gaussian", w: 1, solver: "heun" }, "The same with Heun's solver, for which the arctangent is not the best. Which of these comes closest?"],
  ["Four levels", { w: 0.2, n: 4, schedule: "edm" }, "With four levels the last one, at 0.002, is wasted. Drag the leftmost handle to the right and watch the divergence. First: which of these comes closest?"],
];
const ANSWERS = {
  0: "Among the paper's two clocks the entropic one leads on narrow components. With so few levels a search does better than either.",
  1: "On narrow components the entropic clock beats the rescaled one.",
  2: "Near w = 0.05 the two clocks change places.",
  3: "On wide components the rescaled clock beats the entropic one.",
  4: "No level moved between fixed ends beats the arctangent: its slices are steps of equal length along the exact path. Only a freer last level can.",
  5: "Heun's errors lie at higher noise than those of DDIM, so another grid is best. On a single Gaussian errors of both signs can even cancel.",
  6: "With four levels the last one does nothing: raise it to 0.2, and the divergence falls by a third. The searched grid ends far above 0.002, too.",
};

function readHash() {
  const given = new URLSearchParams(window.location.hash.slice(1)), state = { ...DEFAULT };
  if (!given.has("data")) return state;
  const pick = (key, allowed) => { if (given.get(key) in allowed) state[key] = given.get(key); };
  pick("data", DATA); pick("solver", SOLVERS); pick("schedule", NAMES);
  pick("metric", { kl: 1, w2: 1 }); pick("clock", { own: 1, entropic: 1, rescaled: 1 });
  const number = (key, low, high) => { const v = parseFloat(given.get(key)); if (v >= low && v <= high) state[key] = v; };
  number("w", 0.005, 1); number("n", 4, 64); number("rho", 1, 20);
  state.n = Math.round(state.n);
  const sigmas = (given.get("sigmas") || "").split(",").map(Number);
  const fit = sigmas.length >= 4 && sigmas.length <= 64 && sigmas[0] === HIGH && sigmas[sigmas.length - 1] >= LOW
    && sigmas.every((s, i) => i === 0 || s < sigmas[i - 1]);
  if (state.schedule === "yours") { if (fit) { state.sigmas = sigmas; state.n = sigmas.length; } else state.schedule = DEFAULT.schedule; }
  return legal(state);
}
function hashOf(state) {
  const words = { data: state.data, w: state.w, n: state.n, solver: state.solver, schedule: state.schedule, clock: state.clock, rho: state.rho, metric: state.metric };
  if (state.schedule === "yours") words.sigmas = state.sigmas.map((s) => +s.toPrecision(8)).join(",");
  return "#" + Object.entries(words).map(([k, v]) => `${k}=${v}`).join("&");
}
function legal(state) {
  if (state.solver === "sddim" && state.data !== "gaussian" && state.data !== "power") state.solver = "ddim";
  if (state.data !== "power") state.metric = "kl";
  return state;
}

const plain = (v) => v === Infinity ? "infinite" : v === 0 ? "0" : v < 1e-9 ? "below 1e-9" : v < 1e-3 ? v.toExponential(2) : v.toPrecision(3);
const label = (s) => s >= 10 ? s.toFixed(1) : s >= 1 ? s.toFixed(2) : s.toPrecision(3);
const escapeText = (text) => String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);

function mount(root) {
  const id = root.id || "spend";
  const options = (list) => Object.entries(list).map(([k, v]) => `<option value="${k}">${v}</option>`).join("");
  root.innerHTML = `
  <div class="spend-stories" role="group" aria-label="Seven short stories">${STORIES.map(([name], i) => `<button type="button" data-story="${i}">${i + 1}. ${name}</button>`).join("")}</div>
  <form class="spend-inputs">
    <label>data <select name="data">${options(DATA)}</select></label>
    <label data-for="w"><span>width w = <output name="wOut"></output></span><input type="range" name="w" min="0" max="1" step="0.005"></label>
    <label><span>levels n = <output name="nOut"></output></span><input type="range" name="n" min="4" max="64" step="1"></label>
    <label>solver <select name="solver">${options(SOLVERS)}</select></label>
    <label>schedule <select name="schedule">${options(NAMES)}</select></label>
    <label data-for="rho"><span>rho = <output name="rhoOut"></output></span><input type="range" name="rho" min="1" max="20" step="0.5"></label>
    <label>clock drawn <select name="clock"><option value="own">the schedule's own</option><option value="entropic">entropic</option><option value="rescaled">rescaled</option></select></label>
    <label data-for="metric">distance <select name="metric"><option value="kl">KL</option><option value="w2">W2 squared</option></select></label>
  </form>
  <p class="spend-note"></p>
  <p class="spend-status" role="status" aria-live="polite"></p>
  <div class="spend-panels"><div class="spend-axis"></div><div class="spend-side"><div class="spend-bars"></div><div class="spend-density"></div></div></div>
  <p class="spend-buttons"><button type="button" data-copy="list">copy sigmas as a Python list</button>
    <button type="button" data-copy="text">copy as text</button> <button type="button" data-copy="link">copy link</button>
    <span class="spend-copied" role="status"></span></p>`;
  const find = (selector) => root.querySelector(selector), form = find("form");
  let state = readHash(), revealed = false, guess = null, story = hashOf(state) === hashOf(DEFAULT) ? 0 : -1, run = 0, timer = 0;
  let elsewhere = window.location.hash.length > 1 && !window.location.hash.includes("data=");
  let showing = null; // what is drawn: levels, value, prices, values of all schedules

  const unit = () => state.metric === "w2" && state.data === "power" ? "" : " nats";
  const measure = () => state.data !== "power" ? "KL(data || generated)" : state.metric === "w2" ? "W2 squared" : "KL(generated || data)";
  const keyOf = (name) => `value ${state.data} ${state.data === "power" ? "" : state.w} ${state.n} ${state.solver} ${state.metric} ${name} ${name === "edm" ? state.rho : ""}`;
  const valueOf = (name) => remember(keyOf(name), () => { const levels = levelsOf(name, state); return levels ? { value: distance(state, levels), note: levels.note || "" } : null; });

  function set(change) {
    const before = state;
    state = legal({ ...state, ...change });
    if (state.schedule === "yours") {
      if (!state.sigmas || change.schedule) state.sigmas = change.sigmas || levelsOf(before.schedule, before).slice();
      if (state.sigmas.length !== state.n) state.sigmas = resample(state.sigmas, state.n);
    } else delete state.sigmas;
    update();
  }

  function update() {
    const mine = ++run;
    if (elsewhere) elsewhere = false; // the address names a section of the page: it stays until something is moved
    else try { window.history.replaceState(null, "", hashOf(state)); } catch { window.location.hash = hashOf(state); }
    for (const key of ["data", "solver", "schedule", "clock", "metric", "n", "rho"]) form.elements[key].value = state[key];
    form.elements.w.value = Math.log(state.w / 0.005) / Math.log(200);
    form.elements.wOut.value = +state.w.toPrecision(3); form.elements.nOut.value = state.n; form.elements.rhoOut.value = state.rho;
    find("[data-for=w]").hidden = state.data === "power"; find("[data-for=metric]").hidden = state.data !== "power";
    find("[data-for=rho]").hidden = state.schedule !== "edm";
    const gaussian = state.data === "gaussian" || state.data === "power";
    form.elements.solver.options[3].disabled = !gaussian;
    root.querySelectorAll("[data-story]").forEach((one) => one.setAttribute("aria-pressed", String(+one.dataset.story === story)));
    let levels = levelsOf(state.schedule, state);
    if (!levels) { state.schedule = "edm"; levels = levelsOf("edm", state); form.elements.schedule.value = "edm"; }
    const notes = [];
    if (levels.note) notes.push(`This grid was ${levels.note}, the nearest that was worked out beforehand; other numbers of levels are read off between its own.`);
    if (!gaussian) notes.push("Stochastic DDIM is offered for Gaussian data only, where its law is a closed formula.");
    if (state.data === "power") notes.push("300 directions of variance 1 / k²; a width has no meaning here.");
    find(".spend-note").textContent = notes.join(" ");
    const started = performance.now(), value = distance(state, levels), took = performance.now() - started;
    showing = { levels, value, prices: null, values: {}, took };
    root.dataset.value = value; root.dataset.took = took.toFixed(1);
    drawAxis(); drawBars(); drawDensity(); tell();
    clearTimeout(timer);
    timer = setTimeout(() => { // what may come later: the prices, then the other schedules one by one
      const found = [], rest = Object.keys(NAMES).filter((name) => name !== "yours");
      (function next() {
        if (mine !== run) return;
        if (found.length < levels.length) {
          const until = performance.now() + 30;
          while (found.length < levels.length && performance.now() < until) found.push(price(state, levels, found.length));
          if (found.length === levels.length) { showing.prices = found; drawAxis(); }
          setTimeout(next, 0);
          return;
        }
        const name = rest.shift();
        if (!name) { root.dataset.done = run; drawBars(); tell(); return; }
        showing.values[name] = valueOf(name);
        drawBars();
        setTimeout(next, 0);
      })();
    }, 60);
  }

  function shares() { // of the area in each slice
    const clock = drawnClock();
    const total = clock.at(HIGH) - clock.at(LOW);
    return showing.levels.slice(1).map((s, i) => (clock.at(showing.levels[i]) - clock.at(s)) / total);
  }
  function drawnClock() {
    const name = state.clock !== "own" ? state.clock : ["edm", "log", "cosine", "entropic", "rescaled"].includes(state.schedule) ? state.schedule : root.dataset.lastClock || "rescaled";
    if (state.clock === "own") root.dataset.lastClock = name;
    return Object.assign(Object.create(clockOf(name, state)), { name });
  }
  function tell() {
    const { value, levels } = showing, part = shares(), least = Math.min(...part), most = Math.max(...part);
    const known = revealed ? best() : null;
    const equal = most - least < 1e-4 ? `equal slices of ${NAMES[drawnClock().name]} time, ${(100 * part[0]).toFixed(1)} % each` : `slices of ${NAMES[drawnClock().name]} time from ${(100 * least).toFixed(1)} to ${(100 * most).toFixed(1)} %`;
    const text = `${measure()} = ${plain(value)}${unit()} with ${state.schedule === "yours" ? "your" : `the ${NAMES[state.schedule]}`} levels (n = ${levels.length}, ${SOLVERS[state.solver]}); ${equal}.`
      + (known && known.value >= 1e-9 ? ` ${plain(value / known.value)} times the best known.` : "");
    find(".spend-status").textContent = text;
  }

  // the panels on one axis of log sigma: sigma grows to the right, the sampler walks to the left
  let width = 640;
  const inset = 42;
  const xOf = (s) => inset + 26 + (width - inset - 40) * Math.log(s / LOW) / SPAN;
  const sigmaOf = (x) => LOW * Math.exp(SPAN * Math.min(1, Math.max(0, (x - inset - 26) / (width - inset - 40))));
  const ticks = [0.01, 0.1, 1, 10];

  function drawAxis() {
    const box = find(".spend-axis");
    width = Math.max(300, Math.round(box.clientWidth || 640));
    const { levels } = showing, n = levels.length, clock = drawnClock(), A = 150, C = 105, B = 170, gap = 44;
    const parts = [], top = 22;
    // (a) the integrand of the clock, by differences, so that it is that of any clock
    const fine = 240, xs = [], ys = [];
    for (let i = 0; i <= fine; i++) {
      const s = LOW * Math.exp(SPAN * i / fine), up = Math.min(HIGH, s * 1.01), down = Math.max(LOW, s / 1.01);
      xs.push(s); ys.push((clock.at(up) - clock.at(down)) / Math.log(up / down));
    }
    const peak = Math.max(...ys), y0 = top + A, height = (v) => y0 - (A - 8) * v / peak;
    const rate = (s) => { const p = fine * Math.log(s / LOW) / SPAN, i = Math.min(Math.floor(p), fine - 1); return ys[i] + (p - i) * (ys[i + 1] - ys[i]); };
    parts.push(`<text class="title" x="0" y="12">(a) rate of ${NAMES[clock.name]} time, cut by the levels</text>`);
    const part = shares();
    for (let i = 0; i + 1 < n; i++) {
      const inner = xs.filter((s) => s > levels[i + 1] && s < levels[i]), all = [levels[i + 1], ...inner, levels[i]];
      parts.push(`<path class="slice ${i % 2 ? "odd" : "even"}" d="M${xOf(levels[i + 1]).toFixed(1)},${y0}${all.map((s) => `L${xOf(s).toFixed(1)},${height(rate(s)).toFixed(1)}`).join("")}L${xOf(levels[i]).toFixed(1)},${y0}Z"/>`);
      const wide = xOf(levels[i]) - xOf(levels[i + 1]), middle = (xOf(levels[i]) + xOf(levels[i + 1])) / 2;
      if (wide > 30) parts.push(`<text class="share" x="${middle.toFixed(1)}" y="${y0 - 5}">${(100 * part[i]).toFixed(part[i] < 0.0995 ? 1 : 0)}%</text>`);
    }
    parts.push(`<path class="curve" d="${xs.map((s, i) => `${i ? "L" : "M"}${xOf(s).toFixed(1)},${height(ys[i]).toFixed(1)}`).join("")}"/>`);
    parts.push(axis(y0));
    // (c) the price of each step, at the middle of the step; the last one ends at 0
    const c0 = y0 + gap + 24 + C;
    parts.push(`<text class="title" x="0" y="${c0 - C - 8}">(c) price of each step: ${state.metric === "w2" ? "W2²" : "KL"} if it alone erred</text>`);
    if (showing.prices) {
      const seen = showing.prices.map((p) => Math.min(Math.max(p, 1e-12), 1e6)), high = Math.log10(Math.max(...seen)) + 0.15, low = Math.min(high - 2, Math.max(Math.log10(Math.min(...seen)) - 0.3, high - 6));
      const level = (p) => c0 - C * Math.min(1, Math.max(0, (Math.log10(p) - low) / (high - low)));
      for (let e = Math.ceil(low); e <= high; e += Math.max(1, Math.ceil((high - low) / 4)))
        parts.push(`<line class="grid" x1="${inset}" x2="${width}" y1="${level(10 ** e)}" y2="${level(10 ** e)}"/><text class="tick" text-anchor="end" x="${inset - 4}" y="${level(10 ** e) + 4}">1e${e}</text>`);
      seen.forEach((p, i) => {
        const a = i + 1 < n ? xOf(levels[i + 1]) : inset, b = xOf(levels[i]);
        parts.push(`<rect class="price" x="${(a + 0.5).toFixed(1)}" width="${Math.max(1, b - a - 1).toFixed(1)}" y="${level(p).toFixed(1)}" height="${(c0 - level(p)).toFixed(1)}"><title>${i + 1 < n ? `step from ${label(levels[i])} to ${label(levels[i + 1])}` : `step from ${label(levels[i])} to 0`}: ${plain(showing.prices[i])}</title></rect>`);
      });
    }
    parts.push(axis(c0));
    // (b) paths and their density
    const b0 = c0 + gap + 6 + B;
    parts.push(`<text class="title" x="0" y="${b0 - B - 8}">${state.data === "power" ? "(b) std ÷ exact, k = 1, 3, 10, 30, 100, 300" : state.solver === "sddim" ? "(b) quantiles of the law, and the exact density" : "(b) paths of the sampler, and the exact density"}</text>`);
    parts.push(drawPaths(b0, B), axis(b0));
    parts.push(`<text class="tick" text-anchor="middle" x="${(width + inset) / 2}" y="${b0 + 34}">noise level σ; the sampler walks left, to 0</text>`);
    // the levels, which can be dragged
    levels.forEach((s, i) => {
      const x = xOf(s).toFixed(1), fixed = i === 0;
      parts.push(`<line class="level" x1="${x}" x2="${x}" y1="${top}" y2="${b0}"/>`);
      const about = fixed ? `role="img" aria-label="level 1, fixed at sigma = 80"` : `role="slider" tabindex="0" aria-label="level ${i + 1} of ${n}" aria-valuemin="${levels[i + 1] || LOW}" aria-valuemax="${levels[i - 1]}" aria-valuenow="${s.toPrecision(6)}" aria-valuetext="sigma = ${label(s)}, ${(100 * part[i - 1]).toFixed(1)} percent of the time above it"`;
      parts.push(`<g class="handle${fixed ? " fixed" : ""}" data-level="${i}" ${about}><rect class="grip" x="${x - 11}" y="${y0 - 2}" width="22" height="${gap - 16}"/><path d="M${x},${y0 + 1}l6,10v9h-12v-9Z"/></g>`);
    });
    const held = root.contains(document.activeElement) && document.activeElement.dataset.level;
    const name = `Panels on one axis of noise level: the rate of ${NAMES[clock.name]} time in slices, the price of each step, and ${state.data === "power" ? "standard deviations" : "paths"}.`;
    let svg = box.querySelector("svg");
    if (!svg) { box.innerHTML = `<svg role="group"></svg>`; svg = box.firstChild; }
    svg.setAttribute("viewBox", `0 0 ${width} ${b0 + 40}`); svg.setAttribute("aria-label", name);
    svg.innerHTML = parts.join("");
    if (held) svg.querySelector(`[data-level="${held}"]`)?.focus();
  }

  function axis(y) {
    return `<line class="axis" x1="${inset}" x2="${width}" y1="${y}" y2="${y}"/>`
      + ticks.map((s) => `<line class="axis" x1="${xOf(s)}" x2="${xOf(s)}" y1="${y}" y2="${y + 4}"/><text class="tick" text-anchor="middle" x="${xOf(s)}" y="${y + (y < 180 ? 33 : 16)}">${s}</text>`).join("")
      + `<text class="tick" text-anchor="middle" x="${inset + 4}" y="${y + (y < 180 ? 33 : 16)}">0</text>`;
  }

  function drawPaths(b0, B) {
    const { levels } = showing, data = dataOf(state), at = [...levels.map(xOf), inset + 4], lines = [];
    if (state.data === "power") {
      const found = [1, 3, 10, 30, 100, 300].map((k) => ratios(1 / (k * k), state.solver, levels));
      const most = Math.max(1.1, Math.min(2, Math.max(...found.flat()))), y = (r) => b0 - B * Math.min(r, most) / most;
      found.forEach((r, i) => lines.push(`<path class="path" style="stroke-dasharray:${[0, "8 3", "5 3", "3 3", "8 3 2 3", "2 2"][i]}" d="${r.map((v, k) => `${k ? "L" : "M"}${at[k].toFixed(1)},${y(v).toFixed(1)}`).join("")}"/>`));
      return `<text class="tick" text-anchor="end" x="${inset - 4}" y="${y(1) + 4}">1</text><line class="grid" x1="${inset}" x2="${width}" y1="${y(1)}" y2="${y(1)}"/>` + lines.join("");
    }
    // x / sqrt(1 + sigma^2), or over sqrt(w^2 + sigma^2) for one Gaussian: the whole walk fits
    const size = state.data === "gaussian" ? state.w : 1, reach = 2.9, scale = (s) => Math.sqrt(size * size + s * s);
    const y = (x, s) => b0 - B / 2 * (1 + Math.max(-1, Math.min(1, x / scale(s) / reach)));
    const q = [-2, -1.6, -1.28, -1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1, 1.28, 1.6, 2];
    const n = levels.length, xs = new Float64Array(n), ss = new Float64Array(n);
    for (const t of q) {
      let xsOf;
      if (data.variances) {
        const r = ratios(data.variances[0], state.solver, levels);
        xsOf = r.map((one, k) => t * one * Math.sqrt(data.variances[0] + (levels[k] || 0) ** 2));
      } else {
        const z = t * Math.sqrt(1 + HIGH * HIGH) + 0.01;
        walkOf(data.mixture, state.solver, levels).map(z, xs, ss);
        xsOf = [z, ...xs];
      }
      lines.push(`<path class="path" d="${xsOf.map((x, k) => `${k ? "L" : "M"}${at[k].toFixed(1)},${y(x, levels[k] || 0).toFixed(1)}`).join("")}"/>`);
    }
    const ink = getComputedStyle(root).getPropertyValue("--spend-shade").trim() || "0,114,178";
    const shade = remember(`shade ${state.data} ${state.w} ${ink}`, () => {
      const canvas = document.createElement("canvas"), W = 120, H = 121;
      canvas.width = W; canvas.height = H;
      const paint = canvas.getContext("2d"), image = paint.createImageData(W, H), rgb = ink.split(",").map(Number);
      for (let i = 0; i < W; i++) {
        const s = LOW * Math.exp(SPAN * i / (W - 1)), column = [];
        let most = 0;
        // A pixel holds a mean over its height, lest it misses a narrow component
        const u = Math.sqrt(data.mixture.w2 + s * s), h = reach * 2 * scale(s) / H, wide = Math.max(u, h / 2);
        const blurred = Math.sqrt(Math.max(0, wide * wide - data.mixture.w2));
        for (let j = 0; j < H; j++) { const v = Math.exp(data.mixture.logDensity((reach - 2 * reach * (j + 0.5) / H) * scale(s), blurred)); column.push(v); most = Math.max(most, v); }
        column.forEach((v, j) => image.data.set([...rgb, 190 * Math.sqrt(v / most)], 4 * (j * W + i)));
      }
      paint.putImageData(image, 0, 0);
      return canvas.toDataURL();
    });
    return `<image href="${shade}" x="${xOf(LOW)}" y="${b0 - B}" width="${xOf(HIGH) - xOf(LOW)}" height="${B}" preserveAspectRatio="none"/>` + lines.join("");
  }

  // (d) the generated density over the data's
  function drawDensity() {
    const box = find(".spend-density"), W = Math.max(280, Math.round(box.clientWidth || 400)), H = 190, { levels } = showing, data = dataOf(state);
    const parts = [], left = 8, right = W - 8, y0 = H - 24;
    let title;
    if (state.data === "power") {
      title = "(d) generated over true std, by k";
      const r = data.variances.map((c2) => ratios(c2, state.solver, levels)[levels.length]);
      const most = Math.max(1.2, Math.min(2, Math.max(...r))), x = (k) => left + 20 + (right - left - 20) * Math.log(k) / Math.log(300), y = (v) => y0 - (y0 - 24) * Math.min(v, most) / most;
      parts.push(`<line class="data" x1="${x(1)}" x2="${x(300)}" y1="${y(1)}" y2="${y(1)}"/>`, `<text class="tick" x="${left}" y="${y(1) + 4}">1</text>`);
      parts.push(`<path class="made" d="${r.map((v, i) => `${i ? "L" : "M"}${x(i + 1).toFixed(1)},${y(v).toFixed(1)}`).join("")}"/>`);
      for (const k of [1, 10, 100]) parts.push(`<text class="tick" text-anchor="middle" x="${x(k)}" y="${y0 + 16}">k = ${k}</text>`);
    } else {
      title = "(d) √density: data filled, generated line";
      const w = state.w, span = state.data === "gaussian" ? 4 * w : Math.max(...data.mixture.means.map(Math.abs)) + 3.5 * Math.max(w, 0.05);
      const at = [];
      for (let i = 0; i <= 160; i++) at.push(-span + 2 * span * i / 160);
      for (const m of data.mixture.means) for (const t of [-4, -3, -2.4, -1.8, -1.4, -1, -0.7, -0.35, 0, 0.35, 0.7, 1, 1.4, 1.8, 2.4, 3, 4]) at.push(m + t * w);
      at.sort((a, b) => a - b);
      const ys = at.filter((one) => Math.abs(one) <= span), p = ys.map((one) => Math.exp(data.mixture.logDensity(one, 0)));
      let q;
      if (data.variances) {
        const s = ratios(data.variances[0], state.solver, levels)[levels.length] * w;
        q = ys.map((one) => Math.exp(-one * one / (2 * s * s)) / s / Math.sqrt(2 * Math.PI));
      } else {
        const found = law(walkOf(data.mixture, state.solver, levels));
        q = ys.map((one) => Math.exp(found.logDensity(one)));
      }
      const most = 1.5 * Math.max(...p), x = (one) => left + (right - left) * (one + span) / (2 * span), y = (v) => y0 - (y0 - 24) * Math.sqrt(Math.min(v, most) / most);
      const line = (values) => values.map((v, i) => `${i ? "L" : "M"}${x(ys[i]).toFixed(1)},${y(v || 0).toFixed(1)}`).join("");
      parts.push(`<path class="data" d="${line(p)}L${right},${y0}L${left},${y0}Z"/><path class="made" d="${line(q)}"/>`);
      for (const t of state.data === "gaussian" ? [-2 * w, 0, 2 * w] : [-1, 0, 1, 2]) if (Math.abs(t) < span) parts.push(`<text class="tick" text-anchor="middle" x="${x(t)}" y="${y0 + 16}">${+t.toPrecision(2)}</text>`);
    }
    parts.push(`<line class="axis" x1="${left}" x2="${right}" y1="${y0}" y2="${y0}"/><text class="title" x="0" y="12">${title}</text>`);
    box.innerHTML = `<svg role="img" aria-label="${title}" viewBox="0 0 ${W} ${H}">${parts.join("")}</svg>`;
  }

  // (e) every schedule as a multiple of the best known
  function all() {
    const found = Object.entries(showing.values).filter(([, v]) => v).map(([name, v]) => ({ name, ...v, mine: false }));
    const mine = found.find((one) => one.name === state.schedule);
    if (mine) mine.mine = true; else found.push({ name: state.schedule, value: showing.value, note: "", mine: true });
    return found;
  }
  const best = () => all().reduce((a, b) => b.value < a.value ? b : a);
  function drawBars() {
    const box = find(".spend-bars");
    if (!revealed) {
      const text = story >= 0 ? STORIES[story][2] : "Which of these comes closest to the data here?";
      const key = `ask ${story}`;
      if (box.dataset.shown === key) return;
      box.dataset.shown = key;
      box.innerHTML = `<div class="spend-ask"><p><strong>Guess first.</strong> ${text}</p><p>${["edm", "entropic", "rescaled"].map((one) => `<button type="button" data-guess="${one}">${NAMES[one]}</button>`).join(" ")} <button type="button" data-guess="">just show me</button></p></div>`;
      return;
    }
    const found = all(), known = best(), floor = Math.max(known.value, 1e-9), W = Math.max(280, Math.round(box.clientWidth || 400)), row = 21;
    const times = (v) => Math.max(1, v / floor), most = Math.max(10, ...found.map((one) => Number.isFinite(one.value) ? times(one.value) : 1));
    const left = 100, x = (v) => left + (W - left - 66) * Math.log(Math.min(v, most)) / Math.log(most), parts = [];
    found.forEach((one, i) => {
      const y = 24 + i * row, t = times(one.value), end = one.value === Infinity ? W - 62 : Math.max(left + 3, x(t));
      parts.push(`<text class="name${one.mine ? " mine" : ""}" text-anchor="end" x="${left - 6}" y="${y + 12}">${NAMES[one.name]}${one.note ? " *" : ""}</text><rect class="bar${one.mine ? " mine" : ""}" style="fill: var(--spend-${one.name}, var(--spend-main))" x="${left}" y="${y}" width="${(end - left).toFixed(1)}" height="${row - 6}"><title>${NAMES[one.name]}: ${plain(one.value)}${unit()} ${one.note}</title></rect><text class="tick" x="${(end + 4).toFixed(1)}" y="${y + 12}">${one.value === Infinity ? "∞" : one.value === known.value ? "best" : `× ${t >= 1e4 ? t.toExponential(0) : t.toPrecision(3)}`}</text>`);
    });
    const H = 30 + found.length * row, stars = [...new Set(found.map((one) => one.note).filter(Boolean))];
    const title = `(e) ${state.metric === "w2" ? "W2²" : "KL"} ÷ best known, ${plain(known.value)}${unit()}`;
    const reply = guess === null ? "" : verdict(found);
    box.dataset.shown = "bars";
    box.innerHTML = `<svg role="img" aria-label="${escapeText(`${title}: ${found.map((one) => `${NAMES[one.name]} ${plain(times(one.value))}`).join(", ")}`)}" viewBox="0 0 ${W} ${H}"><text class="title" x="0" y="12">${title}</text>${parts.join("")}</svg>${stars.length ? `<p class="spend-small">* ${stars.join("; ")}.</p>` : ""}<p class="spend-small">${reply}</p>`;
  }
  function verdict(found) {
    const asked = ["edm", "entropic", "rescaled"].map((name) => found.find((one) => one.name === name));
    if (asked.some((one) => !one)) return "";
    const won = asked.reduce((a, b) => b.value < a.value ? b : a);
    const said = guess ? (guess === won.name ? `Your guess, ${NAMES[guess]}, is right.` : `Your guess was ${NAMES[guess]}; of the three it is ${NAMES[won.name]}.`) : `Of the three asked about, ${NAMES[won.name]} comes closest.`;
    return `${said} ${story >= 0 ? ANSWERS[story] : ""}`;
  }

  // what the reader does
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => {
    const { name, value } = event.target;
    story = -1;
    if (name === "w") { const w = 0.005 * 200 ** +value; set({ w: +(w < 0.9975 ? nearStop(w) : 1).toPrecision(3) }); }
    else set({ [name]: name === "n" || name === "rho" ? +value : value });
  });
  const nearStop = (w) => { const stop = nearest(grids().widths.length ? grids().widths : [1], w); return Math.abs(Math.log(stop / w)) < 0.02 ? stop : w; };
  root.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.story !== undefined) {
      story = +button.dataset.story; revealed = false; guess = null;
      set({ ...DEFAULT, ...STORIES[story][1] });
    } else if (button.dataset.guess !== undefined) {
      revealed = true; guess = button.dataset.guess; drawBars(); tell();
    } else if (button.dataset.copy) copy(button.dataset.copy);
  });
  function copy(kind) {
    const sigmas = [...showing.levels.map((s) => +s.toPrecision(8)), 0];
    const text = kind === "link" ? window.location.href : kind === "list" ? `[${sigmas.join(", ")}]` : sigmas.join(",");
    const said = find(".spend-copied"), done = () => { said.textContent = "copied"; };
    root.dataset.copied = text;
    const byHand = () => { // where the clipboard is closed to a page from a disk
      const area = document.createElement("textarea");
      area.value = text; root.append(area); area.select();
      if (document.execCommand("copy")) done(); else said.textContent = text;
      area.remove();
    };
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(done, byHand); else byHand();
  }
  function move(i, sigma) {
    const { levels } = showing, low = (levels[i + 1] || LOW / 1.002) * 1.002, high = levels[i - 1] / 1.002;
    const sigmas = levels.slice();
    sigmas[i] = Math.min(high, Math.max(low, sigma));
    set({ schedule: "yours", sigmas });
  }
  let dragged = 0, frame = 0;
  const axisBox = find(".spend-axis");
  axisBox.addEventListener("pointerdown", (event) => {
    const handle = event.target.closest(".handle:not(.fixed)");
    if (!handle) return;
    dragged = +handle.dataset.level;
    axisBox.setPointerCapture(event.pointerId);
    handle.focus({ preventScroll: true });
    event.preventDefault();
  });
  axisBox.addEventListener("pointermove", (event) => {
    if (!dragged) return;
    const box = axisBox.querySelector("svg").getBoundingClientRect(), x = (event.clientX - box.left) * width / box.width;
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(() => dragged && move(dragged, sigmaOf(x)));
  });
  for (const end of ["pointerup", "pointercancel"]) axisBox.addEventListener(end, () => { dragged = 0; });
  axisBox.addEventListener("keydown", (event) => {
    const handle = event.target.closest(".handle:not(.fixed)");
    const by = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 6, PageDown: -6, Home: -1e3, End: 1e3 }[event.key];
    if (!handle || !by) return;
    event.preventDefault();
    const i = +handle.dataset.level;
    move(i, showing.levels[i] * Math.exp(0.05 * by));
  });
  window.addEventListener("hashchange", () => { const next = readHash(); if (hashOf(next) !== hashOf(state) && window.location.hash.includes("data=")) { state = next; story = -1; update(); } });
  let seen = 0;
  new ResizeObserver(() => { const now = axisBox.clientWidth; if (showing && now && now !== seen) { seen = now; drawAxis(); delete find(".spend-bars").dataset.shown; drawBars(); drawDensity(); } }).observe(axisBox);
  new MutationObserver(() => { if (showing) drawAxis(); }).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  update();
}

if (typeof document === "undefined") return;
const start = () => document.querySelectorAll(".spend").forEach(mount);
if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start); else start();
})();
