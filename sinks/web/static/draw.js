// SPDX-License-Identifier: Apache-2.0
// Elements, numbers, the chart and the map. Every text from the store becomes a text node here and nowhere else: what a
// workload calls a file is shown, never read as markup. Attributes get text of our own, or text as an opaque value (title, option).

const SVG = 'http://www.w3.org/2000/svg';
// Control characters, zero-width ones and the bidirectional overrides: a name that turns its end around would read as another.
const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

export const visible = (text) =>
  String(text).replace(HIDDEN, (one) => '\\u' + one.charCodeAt(0).toString(16).padStart(4, '0'));

// A name may have thousands of letters: its beginning and its end are shown. `pre` shows all of its text.
const LONGEST = 1000;
const brief = (text) => (text.length > LONGEST ? `${text.slice(0, LONGEST / 3)}\u2026${text.slice(-LONGEST * 2 / 3)}` : text);

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(name, '');
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  for (const child of children.flat()) {
    if (child === null || child === undefined || child === false) continue;
    made.append(child instanceof Node ? child : document.createTextNode(made.localName === 'pre' ? visible(child) : brief(visible(child))));
  }
  return made;
}

export const el = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);
export const svg = (name, attributes = {}, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

const whole = new Intl.NumberFormat();
const short = new Intl.NumberFormat(undefined, { notation: 'compact', maximumFractionDigits: 1 });
export const number = (value) => (Math.abs(value) < 100000 ? whole : short).format(value);
export const rate = (value) => (value < 10 ? value.toFixed(1) : number(Math.round(value)));

const two = (value) => String(value).padStart(2, '0');
export function clock(seconds) {
  const at = new Date(seconds * 1000);
  const time = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
  return at.toDateString() === new Date().toDateString() ? time : `${two(at.getMonth() + 1)}-${two(at.getDate())} ${time}`;
}
export const when = (seconds) =>
  seconds ? el('time', { datetime: new Date(seconds * 1000).toISOString(), title: new Date(seconds * 1000).toString() }, clock(seconds)) : el('span', {}, '-');

export const verdict = (status) => el('span', { class: 'badge', 'data-verdict': kindOf(status) }, status || 'none');
export function kindOf(action) {
  if (action === 'Block' || action === 'Deny') return 'deny';
  if (action === 'Allow' || action === 'Failed') return 'allow';
  return action && action.startsWith('Audit') ? 'audit' : 'none';
}

// Columns that need no more than their words; what is left is for paths and names.
const TIGHT = new Set(['WAY', 'PORT', 'BIND PORT', 'PROTOCOL', 'STATUS', 'LAST', 'LAST UPDATED TIME', 'FIRST SEEN', 'LAST SEEN', 'LAST NEW', 'STATE', 'UNSEEN', 'NEXT CLEAN', 'ID', '']);

// `columns`: words of ours. A cell is a text, an element, or a number, which goes to the right.
export function table(columns, lines, more = 0, what = 'lines') {
  const look = columns.map((name, index) =>
    lines.some((line) => typeof line[index] === 'number') ? 'number' : TIGHT.has(name) ? 'tight' : null);
  const row = (cells, name) => el('tr', {}, cells.map((cell, index) => el(name, {
    class: look[index],
    scope: name === 'th' ? 'col' : null,
    'data-column': name === 'td' ? columns[index] : null, // its heading, where a narrow screen shows lines as cards
  }, typeof cell === 'number' ? number(cell) : cell)));
  const made = el('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': what },
    el('table', {}, el('thead', {}, row(columns, 'th')), el('tbody', {}, lines.map((line) => row(line, 'td')))));
  return more ? [made, el('p', { class: 'quiet' }, `${number(more)} more ${what}; hauberk summary shows all`)] : [made];
}

const CLASSES = ['Process', 'File', 'Network', 'Syscall', 'Capabilities', 'Device'];

// `points`: Map of "start|class|status" -> count. Lines of events per second, one per class that was seen, and one of what was denied.
export function chart(into, reading, points, now, minutes = 30) {
  const last = Math.floor(now / 60) * 60;
  const starts = Array.from({ length: minutes }, (_, index) => last - 60 * (minutes - 1 - index));
  const at = new Map(starts.map((start, index) => [start, index]));
  const lines = new Map();
  for (const [key, count] of points) {
    const [start, name, status] = key.split('|');
    const index = at.get(Number(start));
    if (index === undefined) continue;
    // The minute that runs is divided by what has passed of it.
    const seconds = Number(start) === last ? Math.max(10, now - last) : 60;
    for (const line of status === 'Deny' ? [name, 'Denied'] : [name]) {
      if (!lines.has(line)) lines.set(line, new Array(minutes).fill(0));
      lines.get(line)[index] += count / seconds;
    }
  }
  const names = [...CLASSES, 'Denied'].filter((name) => lines.has(name));
  const width = Math.max(280, into.clientWidth), height = 190, left = 44, bottom = 20, top = 8;
  const most = nice(Math.max(0.1, ...names.map((name) => Math.max(...lines.get(name)))));
  const x = (index) => left + (index * (width - left - 8)) / (minutes - 1);
  const y = (value) => height - bottom - (value * (height - bottom - top)) / most;
  const told = names.map((name) => `${name} ${rate(lines.get(name)[minutes - 1])}`).join(', ');
  const drawn = svg('svg', { viewBox: `0 0 ${width} ${height}`, width, height, role: 'img', 'aria-label': told ? `Events per second: ${told}` : 'No events yet' });
  for (const part of [0, 0.5, 1]) {
    drawn.append(svg('line', { class: 'grid', x1: left, x2: width - 8, y1: y(part * most), y2: y(part * most) }),
      svg('text', { class: 'tick-text', x: left - 6, y: y(part * most) + 4, 'text-anchor': 'end' }, part ? rate(part * most) : '0'));
  }
  const minute = (index, now_) => (index === minutes - 1 ? now_ : clock(starts[index]).slice(-8, -3));
  for (const [index, anchor] of [[0, 'start'], [10, 'middle'], [20, 'middle'], [minutes - 1, 'end']])
    drawn.append(svg('text', { class: 'tick-text', x: x(index), y: height - 4, 'text-anchor': anchor }, minute(index, 'now')));
  for (const name of names) {
    const along = lines.get(name).map((value, index) => `${x(index).toFixed(1)},${y(value).toFixed(1)}`);
    drawn.append(svg('polyline', { class: 'line', 'data-class': name, points: along.join(' ') }));
  }
  const say = (index) => {
    const values = names.map((name) => el('span', { class: 'legend', 'data-class': name }, `${name} ${rate(lines.get(name)[index])}`));
    reading.replaceChildren(el('span', { class: 'quiet' }, minute(index, 'this minute')), ...(names.length ? values : ['no events yet']));
  };
  drawn.addEventListener('pointermove', (event) => {
    const box = drawn.getBoundingClientRect();
    const across = ((event.clientX - box.left) * (width / box.width) - left) / (width - left - 8);
    say(Math.min(minutes - 1, Math.max(0, Math.round(across * (minutes - 1)))));
  });
  drawn.addEventListener('pointerleave', () => say(minutes - 1));
  say(minutes - 1);
  into.replaceChildren(drawn);
}

function nice(most) {
  const step = 10 ** Math.floor(Math.log10(most));
  return [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].map((one) => one * step).find((one) => one >= most * 0.999);
}

const short_name = (text, most) => (visible(text).length > most ? visible(text).slice(0, most - 1) + '\u2026' : visible(text));

// Workloads on the left, peers on the right: the edges with denials first, then the busiest.
export function map(into, edges) {
  const shown = edges.filter((edge) => edge.way !== 'bind').slice(0, 40);
  const left = [...new Set(shown.map((edge) => edge.workload))].slice(0, 14);
  const called = (edge) => edge.name || edge.peer;
  const right = [...new Set(shown.filter((edge) => left.includes(edge.workload)).map(called))].slice(0, 24);
  if (!right.length) {
    into.replaceChildren(el('p', { class: 'quiet' }, 'No connections in this time.'));
    return;
  }
  const width = Math.max(320, into.clientWidth), line = 24, height = Math.max(left.length, right.length) * line + 12;
  const letters = Math.floor((width * 0.32 - 12) / 7.4);
  const from = width * 0.32, to = width * 0.68;
  const place = (index, many) => ((index + 0.5) * height) / many;
  const drawn = svg('svg', { viewBox: `0 0 ${width} ${height}`, width, height, role: 'img', 'aria-label': `${left.length} workloads and ${right.length} peers; the table below has the same` });
  for (const edge of shown) {
    const a = left.indexOf(edge.workload), b = right.indexOf(called(edge));
    if (a < 0 || b < 0) continue;
    const y1 = place(a, left.length), y2 = place(b, right.length), middle = (from + to) / 2;
    const total = edge.counts.allowed + edge.counts.audited + edge.counts.denied;
    const verdict = edge.counts.denied ? 'deny' : edge.counts.audited ? 'audit' : 'allow';
    const arrow = edge.way === 'ingress' ? '\u2190' : '\u2192';
    const denied = edge.counts.denied ? `, ${number(edge.counts.denied)} denied` : '';
    drawn.append(svg('path', {
      class: 'edge', 'data-verdict': verdict, 'data-way': edge.way, 'data-covered': edge.undecided ? 'no' : 'yes',
      d: `M${from} ${y1}C${middle} ${y1} ${middle} ${y2} ${to} ${y2}`, 'stroke-width': (1 + Math.log10(total || 1)).toFixed(1),
    }, svg('title', {}, `${edge.workload} ${arrow} ${called(edge)} ${edge.protocol}/${edge.port}: ${number(total)}${denied}, ${edge.policies.join(', ') || 'no policy'}`)));
  }
  const names = (all, x, anchor) => all.forEach((name, index) => drawn.append(
    svg('text', { x, y: place(index, all.length) + 4, 'text-anchor': anchor, class: 'node' },
      short_name(name || 'no peer yet', letters), svg('title', {}, name))));
  names(left, from - 8, 'end');
  names(right, to + 8, 'start');
  into.replaceChildren(drawn);
}
