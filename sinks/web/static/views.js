// SPDX-License-Identifier: Apache-2.0
// What each section shows, from what the stream and the questions brought. No network here: `page.js` fetches and calls these.
import { el, kindOf, map, number, table, verdict, visible, when } from './draw.js';
import { peerName, states } from './learnt.js';

const by = (id) => document.getElementById(id);
const FIRST = 100;
const nothing = (text) => el('p', { class: 'quiet' }, text);

// ---- alerts

const quiet = (...text) => el('span', { class: 'quiet' }, ...text);
const path = (text) => el('span', { class: 'path' }, text || '-');
const badge = (kind, text) => el('span', { class: 'badge', 'data-verdict': kind }, text);

// What the pipeline says of itself: events it lost, alerts it held back.
const notice = (alert) => alert.Type === 'SystemEvent';
export const lost = (alert) =>
  alert.Operation === 'EventsLost' ? Object.values(alert.EventData || {}).reduce((sum, value) => sum + (Number(value) || 0), 0) : 0;

function what(alert) {
  if (!notice(alert)) return [quiet(`${alert.Operation || ''} `), path(alert.ProcessName || alert.Source), quiet(' \u2192 '), path(alert.Resource)];
  const held = alert.Suppressed ? `${number(alert.Suppressed)} alerts were held back` : `more than ${number(alert.MaxAlertsPerSec || 0)} alerts a second`;
  return [quiet(`${alert.Operation} `), alert.Message || held];
}

export function alertRow({ ident, alert }) {
  const severity = Number(alert.Severity) || 0;
  const weight = severity >= 7 ? 'high' : severity >= 4 ? 'middle' : 'low';
  const summary = el('summary', {},
    when(alert.Timestamp),
    notice(alert) ? badge('none', 'notice') : verdict(alert.Action),
    el('span', { class: 'severity', 'data-severity': weight, title: 'severity, 10 is worst' }, alert.Severity || '-'),
    el('span', { class: 'who' }, alert.NamespaceName ? `${alert.NamespaceName}/` : '', el('b', {}, alert.PodName || alert.ContainerName || alert.HostName || '')),
    el('span', { class: 'what' }, what(alert)),
    el('span', { class: 'why' },
      alert.PolicyName ? el('b', {}, alert.PolicyName) : quiet('no policy'),
      alert.Rule ? [' ', el('code', {}, alert.Rule)] : null,
      alert.Mode ? [' ', badge('none', alert.Mode)] : null,
      alert.Count > 1 ? ` \u00d7${number(alert.Count)}` : null,
      alert.Message && !notice(alert) ? quiet(` ${alert.Message}`) : null));
  const made = el('details', { 'data-ident': ident }, summary);
  // The whole of it is put in when somebody looks.
  made.addEventListener('toggle', () => {
    if (made.open && made.children.length === 1) made.append(el('pre', {}, ...lines(JSON.stringify(alert, null, 2))));
  });
  return made;
}

// Newlines of ours stay newlines; those within a name are spelled out, as everywhere.
const lines = (text) => text.split('\n').flatMap((line, index) => (index ? [document.createTextNode('\n'), line] : [line]));

const SEARCHED = ['NamespaceName', 'PodName', 'ContainerName', 'HostName', 'Labels', 'ProcessName', 'Source', 'Resource', 'Data',
  'PolicyName', 'Rule', 'Message', 'Tags', 'Operation', 'Result'];

export function passes({ alert }, wanted) {
  if (wanted.action && alert.Action !== wanted.action) return false;
  if (wanted.namespace && alert.NamespaceName !== wanted.namespace) return false;
  if (!wanted.text) return true;
  const text = SEARCHED.map((name) => alert[name] || '').join('\n').toLowerCase();
  return wanted.text.toLowerCase().split(/\s+/).every((word) => text.includes(word));
}

// All rows again, after a filter changed; `most` grows with "Show more".
export function alertList(alerts, wanted, most = FIRST) {
  const fits = alerts.filter((one) => passes(one, wanted));
  const none = alerts.length ? 'Nothing fits the filter.' : 'No alerts yet. They appear here as they happen.';
  by('list').replaceChildren(...(fits.length ? fits.slice(0, most).map(alertRow) : [nothing(none)]));
  by('more').hidden = fits.length <= most;
  return fits.length;
}

// New ones on top, without touching the rest: an open one stays open, the keyboard stays where it is.
export function alertsOnTop(into, fresh, most = FIRST) {
  if (!fresh.length) return;
  into.querySelector(':scope > p')?.remove();
  const rows = fresh.map(alertRow);
  for (const row of rows) row.classList.add('fresh');
  into.prepend(...rows);
  while (into.children.length > most) into.lastElementChild.remove();
}

export function choices(select, values) {
  const have = new Set([...select.options].map((one) => one.value));
  for (const value of [...values].sort()) if (value && !have.has(value)) select.append(el('option', { value }, value));
}

// ---- now

export function actions(alerts) {
  const counts = new Map();
  for (const { alert } of alerts) {
    if (notice(alert)) continue;
    const name = (alert.Action || 'none') + (alert.Mode ? ` (${alert.Mode})` : '');
    counts.set(name, (counts.get(name) || 0) + 1);
  }
  const most = Math.max(1, ...counts.values());
  const bars = [...counts].sort((a, b) => b[1] - a[1]).map(([name, count]) => {
    const bar = el('meter', { min: 0, max: most, value: count, 'aria-hidden': 'true', 'data-verdict': kindOf(name) });
    return el('li', {}, verdict(name), bar, el('span', { class: 'number', 'data-action': name }, number(count)));
  });
  const oldest = alerts.length ? alerts[alerts.length - 1].alert.Timestamp : 0;
  by('actions').replaceChildren(
    bars.length ? el('ul', { class: 'bars' }, bars) : nothing('No alerts yet.'),
    alerts.length ? el('p', { class: 'quiet' }, `of the newest ${number(alerts.length)} alerts, since `, when(oldest)) : '');
}

export function tiles(values) {
  by('tiles').replaceChildren(...values.map(([name, value, kind]) => el('div', { 'data-verdict': kind || null }, el('dt', {}, name), el('dd', {}, value))));
}

// ---- workloads

const total = (counts) => counts.allowed + counts.audited + counts.denied;
const told = (counts) => [
  counts.denied ? badge('deny', `${number(counts.denied)} denied`) : null,
  counts.audited ? badge('audit', `${number(counts.audited)} audited`) : null,
];
const left = (more, name) => (more ? nothing(`${number(more)} more ${name} are not shown`) : '');
const found_in = (words, ...texts) => texts.join('\n').toLowerCase().includes(words.toLowerCase());

export function workloads(survey, learnt, text, chosen, pick) {
  const fits = survey.workloads.filter((one) => found_in(text, one.name, one.labels, one.image, one.node));
  const list = fits.map((one) => {
    const about = one.host ? ['host'] : [one.containers > 1 ? `${number(one.containers)} containers` : '', one.image, one.labels];
    const button = el('button', { type: 'button', class: 'pick', 'aria-pressed': String(one.name === chosen) },
      el('b', {}, one.name),
      quiet(about.filter(Boolean).join(' \u00b7 ')),
      el('span', {}, `${number(total(one.counts))} events `, ...told(one.counts)),
      el('span', {}, ...states(learnt, one.name)));
    button.addEventListener('click', () => pick(one.name));
    return el('li', {}, button);
  });
  by('workload-list').replaceChildren(
    el('h2', {}, `${number(fits.length)} workloads`),
    list.length ? el('ul', { class: 'picks' }, list) : nothing('Nobody in this time.'),
    left(survey.more_workloads, 'workloads'));
}

const TIMES = 'LAST UPDATED TIME';

const HEAD = [['Namespace', 'namespace'], ['Pod', 'pod'], ['Container', 'container'], ['Cluster', 'cluster'], ['Labels', 'labels']];

export function sheet(found) {
  const head = HEAD.filter(([, field]) => found.header[field])
    .map(([name, field]) => el('div', {}, el('dt', {}, name), el('dd', {}, found.header[field])));
  const parts = found.tables.flatMap((one) => {
    // Columns that nobody has anything in are left out: names and labels of peers, where nobody knows them.
    const kept = one.columns.map((_, index) => index).filter((index) => one.lines.some((line) => line[index] !== ''));
    const cell = (line, index) => {
      const name = one.columns[index];
      if (name === TIMES) return when(line[index]);
      if (name === 'STATUS') return verdict(line[index]);
      // A denied socket has neither peer nor port.
      return name.endsWith('PORT') ? String(line[index] || '-') : line[index] === '' ? '-' : line[index];
    };
    const cells = one.lines.map((line) => kept.map((index) => cell(line, index)));
    return [el('h3', {}, one.title), ...table(kept.map((index) => one.columns[index]), cells, one.more, one.title)];
  });
  by('sheet').replaceChildren(
    el('h2', {}, found.workload),
    el('dl', { class: 'head' }, head),
    ...(parts.length ? parts : [nothing('Nothing was seen in this time.')]),
    found.cut ? nothing('Only what happened most often is counted here; hauberk summary counts all.') : '');
}

// ---- network

const WAYS = { egress: 'to', ingress: 'from', bind: 'listens on' };

const EDGES = ['WORKLOAD', 'WAY', 'PEER', 'PORT', 'PROTOCOL', 'COUNT', 'LAST', 'STATUS', 'COVERED BY'];

// The policies that decided it when it happened; what none decided is said with its number.
function covered({ policies, more_policies: more, counts, undecided }) {
  const names = policies.map((name) => (name === 'DefaultPosture' ? 'default posture' : name)).join(', ') + (more ? ` and ${number(more)} more` : '');
  if (!undecided) return names;
  return el('span', {}, names ? `${names}; ` : '', quiet(names ? `${number(undecided)} of ${number(total(counts))} by no policy` : 'no policy'));
}

export function network(survey, learnt, text) {
  const named = survey.edges.map((one) => ({ ...one, name: peerName(learnt, one.peer) }));
  const fits = named.filter((one) => found_in(text, one.workload, one.peer, one.name, one.port, one.protocol, one.way, one.policies.join('\n')));
  const status = (counts) => el('span', {}, ...(counts.denied || counts.audited ? told(counts) : [verdict('Allow')]));
  const peer = (one) => (one.name ? el('span', {}, one.name, ' ', quiet(one.peer)) : one.peer || '-');
  const rows = fits.map((one) =>
    [one.workload, WAYS[one.way], peer(one), String(one.port || '-'), one.protocol, total(one.counts), when(one.counts.last), status(one.counts), covered(one)]);
  map(by('map'), fits);
  const open = fits.filter((one) => one.undecided).length;
  by('edges').replaceChildren(
    el('h2', {}, `${number(fits.length)} edges`, quiet(fits.length ? `, ${number(fits.length - open)} covered by policies` : '')),
    ...(rows.length ? table(EDGES, rows, 0, 'edges') : [nothing('No connections in this time.')]),
    left(survey.more_edges, 'edges'));
}

// ---- policies

const RULES = ['RULE', 'DENIED', 'AUDITED', 'ALLOWED', 'LAST'];

export function policies(survey) {
  const made = survey.policies.map((one) => {
    const rows = one.rules.map(({ position, counts }) =>
      [position || 'default posture', counts.denied, counts.audited, counts.allowed, when(counts.last)]);
    return el('article', { class: 'card' },
      el('h2', {}, one.name, ' ', quiet([one.kind, one.namespace].filter(Boolean).join(' in '))),
      el('p', {}, ...told(one.counts), one.counts.allowed ? badge('allow', `${number(one.counts.allowed)} allowed`) : null, ' last ', when(one.counts.last)),
      ...table(RULES, rows, 0, `rules of ${visible(one.name)}`));
  });
  by('policy-list').replaceChildren(
    ...(made.length ? made : [el('p', { class: 'card quiet' }, 'No policy decided anything in this time.')]),
    left(survey.more_policies, 'policies'));
}
